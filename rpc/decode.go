package rpc

import (
	"encoding/binary"
	"fmt"
	"math"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/support"
)

// aliasBelow is the size of frame up to which decoded data aliases it. Above,
// each message's entries are copied into one slab: else one cached entry of a
// quiet group would keep a whole large frame of busy groups alive.
const aliasBelow = 64 << 10

// minMessageBytes and minEntryBytes are what the smallest of each takes on the
// wire; counts are checked against them before memory is taken.
const (
	minMessageBytes = 2
	minEntryBytes   = 1
)

// boxedMessage is a raft message and all its scalars in one allocation: raft's
// protobuf type points to each scalar, which would be ten allocations.
type boxedMessage struct {
	m       raftpb.Message
	typ     raftpb.MessageType
	reject  bool
	scalars [8]uint64
}

// boxedEntry is an entry with its scalars; entries of a message are one slab.
type boxedEntry struct {
	e     raftpb.Entry
	typ   raftpb.EntryType
	term  uint64
	index uint64
}

// reader consumes a payload. The first error sticks, and every later read
// returns zero, so that callers check once.
type reader struct {
	b       []byte
	copying bool // data must not alias the frame
	entries int  // decoded so far, against maxFrameEntries
	err     error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: bad %s with %d bytes left", errCorrupt, what, len(r.b))
	}
	r.b = nil
}

func (r *reader) uvarint(what string) uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 {
		v := r.b[0]
		r.b = r.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte(what string) byte {
	if len(r.b) == 0 {
		r.fail(what)
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uint16(what string) uint16 {
	if len(r.b) < 2 {
		r.fail(what)
		return 0
	}
	v := binary.LittleEndian.Uint16(r.b)
	r.b = r.b[2:]
	return v
}

// bytes returns a part of the frame, capped so that an append to it cannot
// reach its neighbour. It is never nil.
func (r *reader) bytes(what string) []byte {
	n := r.uvarint(what)
	if n > uint64(len(r.b)) {
		r.fail(what)
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

// decodeMessages decodes the payload of a frame of kind kindMessages. The
// messages alias the payload, which belongs to them from now on.
func decodeMessages(payload []byte) ([]multiraft.Message, error) {
	if len(payload) < 4 {
		return nil, fmt.Errorf("%w: no count of messages", errCorrupt)
	}
	count := binary.LittleEndian.Uint32(payload)
	r := &reader{b: payload[4:], copying: len(payload) > aliasBelow}
	if count > maxFrameMessages || int(count)*minMessageBytes > len(r.b) {
		return nil, fmt.Errorf("%w: %d messages in %d bytes", errCorrupt, count, len(r.b))
	}
	msgs := make([]multiraft.Message, count)
	for i := range msgs {
		r.message(&msgs[i])
		if r.err != nil {
			return nil, r.err
		}
	}
	if len(r.b) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last message", errCorrupt, len(r.b))
	}
	return msgs, nil
}

func (r *reader) message(m *multiraft.Message) {
	m.Range = ids.RangeID(r.uvarint("range id"))
	parts := r.byte("parts")
	if parts&^partsKnown != 0 {
		r.fail("parts")
		return
	}
	m.ToLearner = parts&partToLearner != 0
	if parts&partTruncate != 0 {
		m.Truncate = ids.Index(r.uvarint("truncation index"))
	}
	if parts&partGone != 0 {
		m.Gone = ids.ReplicaID(r.uvarint("gone replica id"))
	}
	if parts&partEpoch != 0 {
		m.Epoch = r.epoch()
	}
	if parts&partLeft != 0 {
		m.Left.Replica = ids.ReplicaID(r.uvarint("departed replica id"))
		m.Left.Term = ids.Term(r.uvarint("departed term"))
	}
	if parts&partAsk != 0 {
		m.Ask = ids.Term(r.uvarint("asked term"))
	}
	if parts&partRaft != 0 {
		m.Raft = r.raft()
	}
}

func (r *reader) epoch() support.Epoch {
	life, count := r.uvarint("epoch"), r.uvarint("epoch")
	if life > math.MaxUint32 || count > math.MaxUint32 {
		r.fail("epoch")
		return 0
	}
	return support.Epoch(life<<32 | count)
}

func (r *reader) raft() *raftpb.Message {
	box := &boxedMessage{}
	m := &box.m
	fields := r.uint16("raft fields")
	if fields&^fieldsKnown != 0 {
		r.fail("raft fields")
		return nil
	}
	if fields&hasType != 0 {
		box.typ = raftpb.MessageType(r.uvarint("raft type"))
		m.Type = &box.typ
	}
	bit := uint16(hasTo)
	for i, p := range [...]**uint64{
		&m.To, &m.From, &m.Term, &m.LogTerm, &m.Index, &m.Commit, &m.Vote, &m.RejectHint,
	} {
		if fields&bit != 0 {
			box.scalars[i] = r.uvarint("raft field")
			*p = &box.scalars[i]
		}
		bit <<= 1
	}
	if fields&hasReject != 0 {
		box.reject = fields&rejectIsTrue != 0
		m.Reject = &box.reject
	}
	if fields&hasContext != 0 {
		m.Context = r.bytes("raft context")
		if r.copying {
			m.Context = append(make([]byte, 0, len(m.Context)), m.Context...)
		}
	}
	if fields&hasSnapshot != 0 {
		m.Snapshot = &raftpb.Snapshot{}
		if err := proto.Unmarshal(r.bytes("raft snapshot"), m.Snapshot); err != nil {
			r.fail("raft snapshot")
		}
	}
	if fields&hasEntries != 0 {
		r.raftEntries(m)
	}
	return m
}

func (r *reader) raftEntries(m *raftpb.Message) {
	n := r.uvarint("count of entries")
	if n > uint64(maxFrameEntries-r.entries) || n*minEntryBytes > uint64(len(r.b)) {
		r.fail("count of entries")
		return
	}
	r.entries += int(n)
	slab := make([]boxedEntry, n)
	m.Entries = make([]*raftpb.Entry, n)
	term, index, total := m.GetLogTerm(), m.GetIndex(), 0
	for i := range slab {
		box := &slab[i]
		r.entry(box, term, index)
		term, index = box.term, box.index
		total += len(box.e.Data)
		m.Entries[i] = &box.e
	}
	if r.copying && r.err == nil {
		copyData(m.Entries, total)
	}
}

func (r *reader) entry(box *boxedEntry, term, index uint64) {
	flags := r.byte("entry flags")
	if flags&entryHasType != 0 {
		box.typ = raftpb.EntryType(flags & entryTypeMask)
		box.e.Type = &box.typ
	}
	switch flags & (entryHasTerm | entrySameTerm) {
	case entryHasTerm:
		box.term, box.e.Term = r.uvarint("entry term"), &box.term
	case entryHasTerm | entrySameTerm:
		box.term, box.e.Term = term, &box.term
	}
	switch flags & (entryHasIndex | entryNextIndex) {
	case entryHasIndex:
		box.index, box.e.Index = r.uvarint("entry index"), &box.index
	case entryHasIndex | entryNextIndex:
		box.index, box.e.Index = index+1, &box.index
	}
	if flags&entryHasData != 0 {
		box.e.Data = r.bytes("entry data")
	}
}

// copyData moves the data of entries out of their frame into one slab.
func copyData(entries []*raftpb.Entry, total int) {
	slab := make([]byte, 0, total)
	for _, e := range entries {
		if e.Data == nil {
			continue
		}
		at := len(slab)
		slab = append(slab, e.Data...)
		e.Data = slab[at:len(slab):len(slab)]
	}
}
