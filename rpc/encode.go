package rpc

import (
	"encoding/binary"
	"fmt"
	"math"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/support"
)

// Limits of a frame of raft messages. The encoder keeps them, the decoder
// refuses what exceeds them before it allocates: they bound what a frame of
// few bytes can make a receiver allocate.
const (
	maxFrameMessages = 16_384
	maxFrameEntries  = 65_536
	// targetFrameBytes ends a frame; one message that is larger still travels
	// alone, up to MaxMessageBytes of the grpc settings.
	targetFrameBytes = 4 << 20
)

// Bits that say which parts of a multiraft.Message follow its range id.
const (
	partRaft      = 1 << 0
	partTruncate  = 1 << 1
	partGone      = 1 << 2
	partToLearner = 1 << 3
	partEpoch     = 1 << 4
	partLeft      = 1 << 5
	partAsk       = 1 << 6
	partsKnown    = 1<<7 - 1
)

// Bits that say which fields of a raftpb.Message are present: protobuf tells an
// absent field from a zero, and raft reads some of them that way.
const (
	hasType       = 1 << 0
	hasTo         = 1 << 1
	hasFrom       = 1 << 2
	hasTerm       = 1 << 3
	hasLogTerm    = 1 << 4
	hasIndex      = 1 << 5
	hasCommit     = 1 << 6
	hasVote       = 1 << 7
	hasRejectHint = 1 << 8
	hasReject     = 1 << 9
	rejectIsTrue  = 1 << 10
	hasContext    = 1 << 11
	hasSnapshot   = 1 << 12
	hasEntries    = 1 << 13
	fieldsKnown   = 1<<14 - 1
)

// Bits of an entry. In an append nearly every entry has the term of the one
// before it and the next index, so both usually cost no bytes.
const (
	entryTypeMask  = 3 // value of Type
	entryHasType   = 1 << 2
	entryHasTerm   = 1 << 3
	entrySameTerm  = 1 << 4
	entryHasIndex  = 1 << 5
	entryNextIndex = 1 << 6
	entryHasData   = 1 << 7
)

// messagesFrame encodes as many of msgs as fit into one frame (at least one),
// stamps it with the clock as it stands after the last one, and returns the
// frame and how many it took. Messages that cannot travel are skipped (and
// counted as taken); dropped says how many.
func messagesFrame(
	buf []byte, from ids.NodeID, msgs []multiraft.Message, stamp func() hlc.Timestamp,
) (frame []byte, taken, dropped int) {
	buf = beginFrame(buf, kindMessages, from)
	at := len(buf)
	buf = binary.LittleEndian.AppendUint32(buf, 0)
	count, entries := 0, 0
	for i := range msgs {
		if count == maxFrameMessages || len(buf) >= targetFrameBytes {
			break
		}
		n := len(msgs[i].Raft.GetEntries())
		if entries+n > maxFrameEntries && entries > 0 {
			break
		}
		if count > 0 && len(buf)+messageBytes(&msgs[i]) > targetFrameBytes {
			break
		}
		taken++
		next, err := appendMessage(buf, &msgs[i])
		if err != nil || n > maxFrameEntries {
			dropped++
			continue
		}
		buf = next
		count++
		entries += n
	}
	binary.LittleEndian.PutUint32(buf[at:], uint32(count))
	return sealFrame(buf, stamp()), taken, dropped
}

// messageBytes is what a message counts in queues and frames: its payloads and
// a little for its fields.
func messageBytes(m *multiraft.Message) int {
	const fields, perEntry = 64, 16
	n := fields
	if m.Raft == nil {
		return n
	}
	n += len(m.Raft.GetContext())
	for _, e := range m.Raft.GetEntries() {
		n += perEntry + len(e.GetData())
	}
	if s := m.Raft.GetSnapshot(); s != nil {
		n += len(s.GetData()) + fields
	}
	return n
}

// messageParts says which parts a message has; a part that is zero costs nothing.
func messageParts(m *multiraft.Message) byte {
	var parts byte
	if m.Raft != nil {
		parts |= partRaft
	}
	if m.Truncate != 0 {
		parts |= partTruncate
	}
	if m.Gone != 0 {
		parts |= partGone
	}
	if m.ToLearner {
		parts |= partToLearner
	}
	if m.Epoch != 0 {
		parts |= partEpoch
	}
	if m.Left != (multiraft.Departure{}) {
		parts |= partLeft
	}
	if m.Ask != 0 {
		parts |= partAsk
	}
	return parts
}

func appendMessage(buf []byte, m *multiraft.Message) ([]byte, error) {
	parts := messageParts(m)
	buf = binary.AppendUvarint(buf, uint64(m.Range))
	buf = append(buf, parts)
	if m.Truncate != 0 {
		buf = binary.AppendUvarint(buf, uint64(m.Truncate))
	}
	if m.Gone != 0 {
		buf = binary.AppendUvarint(buf, uint64(m.Gone))
	}
	if parts&partEpoch != 0 {
		buf = appendEpoch(buf, m.Epoch)
	}
	if parts&partLeft != 0 {
		buf = binary.AppendUvarint(buf, uint64(m.Left.Replica))
		buf = binary.AppendUvarint(buf, uint64(m.Left.Term))
	}
	if m.Ask != 0 {
		buf = binary.AppendUvarint(buf, uint64(m.Ask))
	}
	if m.Raft == nil {
		return buf, nil
	}
	return appendRaft(buf, m.Raft)
}

// appendEpoch encodes the two halves of an epoch, a life and a count, apart: both
// are small numbers, and it travels with every answer to an append.
func appendEpoch(buf []byte, e support.Epoch) []byte {
	buf = binary.AppendUvarint(buf, uint64(e>>32))
	return binary.AppendUvarint(buf, uint64(e&math.MaxUint32))
}

func appendRaft(buf []byte, m *raftpb.Message) ([]byte, error) {
	if len(m.Responses) > 0 {
		// Responses are for the local storage threads; on the wire they would
		// acknowledge what this node has not made durable.
		return nil, fmt.Errorf("encode raft message of type %v: it carries responses", m.GetType())
	}
	fields := raftFields(m)
	buf = binary.LittleEndian.AppendUint16(buf, fields)
	if m.Type != nil {
		buf = binary.AppendUvarint(buf, uint64(*m.Type))
	}
	for _, v := range [...]*uint64{
		m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit, m.Vote, m.RejectHint,
	} {
		if v != nil {
			buf = binary.AppendUvarint(buf, *v)
		}
	}
	if m.Context != nil {
		buf = appendBytes(buf, m.Context)
	}
	if m.Snapshot != nil {
		data, err := proto.Marshal(m.Snapshot)
		if err != nil {
			return nil, fmt.Errorf("encode raft snapshot: %w", err)
		}
		buf = appendBytes(buf, data)
	}
	if len(m.Entries) > 0 {
		buf = binary.AppendUvarint(buf, uint64(len(m.Entries)))
		buf = appendEntries(buf, m)
	}
	return buf, nil
}

func raftFields(m *raftpb.Message) uint16 {
	var fields uint16
	if m.Type != nil {
		fields |= hasType
	}
	bit := uint16(hasTo)
	for _, v := range [...]*uint64{
		m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit, m.Vote, m.RejectHint,
	} {
		if v != nil {
			fields |= bit
		}
		bit <<= 1
	}
	if m.Reject != nil {
		fields |= hasReject
		if *m.Reject {
			fields |= rejectIsTrue
		}
	}
	if m.Context != nil {
		fields |= hasContext
	}
	if m.Snapshot != nil {
		fields |= hasSnapshot
	}
	if len(m.Entries) > 0 {
		fields |= hasEntries
	}
	return fields
}

func appendEntries(buf []byte, m *raftpb.Message) []byte {
	term, index := m.GetLogTerm(), m.GetIndex()
	for _, e := range m.Entries {
		var flags byte
		if e.Type != nil {
			flags |= entryHasType | byte(*e.Type)&entryTypeMask
		}
		if e.Term != nil {
			flags |= entryHasTerm
			if *e.Term == term {
				flags |= entrySameTerm
			}
		}
		if e.Index != nil {
			flags |= entryHasIndex
			if *e.Index == index+1 {
				flags |= entryNextIndex
			}
		}
		if e.Data != nil {
			flags |= entryHasData
		}
		buf = append(buf, flags)
		if flags&(entryHasTerm|entrySameTerm) == entryHasTerm {
			buf = binary.AppendUvarint(buf, *e.Term)
		}
		if flags&(entryHasIndex|entryNextIndex) == entryHasIndex {
			buf = binary.AppendUvarint(buf, *e.Index)
		}
		if e.Data != nil {
			buf = appendBytes(buf, e.Data)
		}
		term, index = e.GetTerm(), e.GetIndex()
	}
	return buf
}

func appendBytes(buf, b []byte) []byte {
	buf = binary.AppendUvarint(buf, uint64(len(b)))
	return append(buf, b...)
}
