package store

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// A log entry is stored as type(1) term(uvarint) data; the index is in its key.
// It has no checksum of its own: Pebble's blocks and log chunks have theirs.

func entryValueLen(e *raftpb.Entry) int {
	return 1 + uvarintLen(e.GetTerm()) + len(e.GetData())
}

func putEntryValue(dst []byte, e *raftpb.Entry) {
	dst[0] = byte(e.GetType())
	n := 1 + binary.PutUvarint(dst[1:], e.GetTerm())
	copy(dst[n:], e.GetData())
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// splitEntryValue returns the parts of a stored entry; data aliases v.
func splitEntryValue(v []byte) (t raftpb.EntryType, term uint64, data []byte, err error) {
	if len(v) < 2 || v[0] > byte(raftpb.EntryConfChangeV2) {
		return 0, 0, nil, fmt.Errorf("log entry is damaged")
	}
	term, n := binary.Uvarint(v[1:])
	if n <= 0 || term == 0 {
		return 0, 0, nil, fmt.Errorf("log entry is damaged")
	}
	return raftpb.EntryType(v[0]), term, v[1+n:], nil
}

// decodeEntry returns a stored entry, with its data copied: one allocation for
// the entry and its scalars, one for the data.
func decodeEntry(index uint64, v []byte) (*raftpb.Entry, error) {
	t, term, data, err := splitEntryValue(v)
	if err != nil {
		return nil, err
	}
	box := &struct {
		entry       raftpb.Entry
		index, term uint64
		kind        raftpb.EntryType
	}{index: index, term: term, kind: t}
	e := &box.entry
	e.Index, e.Term, e.Type = &box.index, &box.term, &box.kind
	if len(data) > 0 {
		e.Data = append(make([]byte, 0, len(data)), data...)
	}
	return e, nil
}

// sizeLimit admits entries until their encoded size, as raft counts it, passes
// a maximum. It always admits one.
type sizeLimit struct{ left, count uint64 }

func (l *sizeLimit) admit(e *raftpb.Entry) bool {
	size := encodedSize(e)
	if l.count > 0 && size > l.left {
		return false
	}
	l.left -= min(size, l.left)
	l.count++
	return true
}

// encodedSize is proto.Size without reflection: it runs under the cache's lock.
func encodedSize(e *raftpb.Entry) uint64 {
	n := 0
	if e.Type != nil {
		n += 1 + uvarintLen(uint64(*e.Type))
	}
	if e.Term != nil {
		n += 1 + uvarintLen(*e.Term)
	}
	if e.Index != nil {
		n += 1 + uvarintLen(*e.Index)
	}
	if e.Data != nil {
		n += 1 + uvarintLen(uint64(len(e.Data))) + len(e.Data)
	}
	return uint64(n)
}

// hardState is a group's hard state by value.
type hardState struct{ term, vote, commit uint64 }

func (h hardState) encode() []byte {
	b := binary.AppendUvarint(make([]byte, 0, 24), h.term)
	b = binary.AppendUvarint(b, h.vote)
	return binary.AppendUvarint(b, h.commit)
}

func decodeHardState(v []byte) (h hardState, err error) {
	for _, field := range []*uint64{&h.term, &h.vote, &h.commit} {
		x, n := binary.Uvarint(v)
		if n <= 0 {
			return hardState{}, fmt.Errorf("hard state is damaged")
		}
		*field, v = x, v[n:]
	}
	if len(v) != 0 {
		return hardState{}, fmt.Errorf("hard state is damaged")
	}
	return h, nil
}

func hardStateOf(hs *raftpb.HardState) hardState {
	return hardState{hs.GetTerm(), hs.GetVote(), hs.GetCommit()}
}

func (h hardState) proto() *raftpb.HardState {
	return &raftpb.HardState{Term: new(h.term), Vote: new(h.vote), Commit: new(h.commit)}
}

// position is an index and the term of the entry there.
type position struct{ index, term uint64 }

func (p position) encode() []byte {
	b := binary.AppendUvarint(make([]byte, 0, 16), p.index)
	return binary.AppendUvarint(b, p.term)
}

func decodePosition(v []byte) (p position, err error) {
	index, n := binary.Uvarint(v)
	if n <= 0 {
		return p, fmt.Errorf("truncated state is damaged")
	}
	term, m := binary.Uvarint(v[n:])
	if m <= 0 || n+m != len(v) {
		return p, fmt.Errorf("truncated state is damaged")
	}
	return position{index, term}, nil
}
