package ranges

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// Every entry (and the context of every configuration change) is a header and
// a body:
//
//	format 1 byte, kind 1 byte, closed timestamp 8, bounds hash 8, fingerprint
//	delta 8, then varints: evaluation term, generation, sequence, the eight
//	statistics deltas (zigzag); then the body.
//
// Numbers are little endian. The format changes when this layout does.

const entryFormat = 1

// entryKind says what the body is.
type entryKind byte

const (
	kindWrite       entryKind = 1 // body: a Pebble batch
	kindSplit       entryKind = 2 // body: splitBody
	kindGCThreshold entryKind = 3 // body: the threshold, 8 bytes
	kindReplicas    entryKind = 4 // body: the new descriptor; in a configuration change's context
	kindMark        entryKind = 5 // body: the merge mark that the descriptor gets
	kindSeal        entryKind = 6 // does nothing; body: none, or a note (check.go)
	kindAbsorb      entryKind = 7 // body: see encodeAbsorb
)

// isSeal says of an entry whether it is a seal: what one is for says
// Group.stageAppend in multiraft.
func isSeal(data []byte) bool {
	return len(data) >= fixedHeader && data[0] == entryFormat && entryKind(data[1]) == kindSeal
}

// errUnknownEntry says that this binary cannot apply an entry. The replica
// halts: skipping it would let replicas diverge.
var errUnknownEntry = errors.New("entry of a format or kind that this version does not know")

// header is the part of an entry that apply decides by.
type header struct {
	kind entryKind
	// term in which the entry was evaluated. Apply compares it with the term
	// that the entry has in the log.
	term ids.Term
	// generation and bounds of the descriptor at evaluation. A structural entry
	// needs the same generation; a write the same bounds (see accepts).
	generation ids.Generation
	bounds     uint64
	sequence   uint64 // of the leader's proposals, finds who waits
	closed     hlc.Timestamp
	delta      mvcc.Delta
}

const fixedHeader = 2 + 8 + 8 + 8

// maxHeader bounds the encoded header: eleven varints of at most ten bytes.
const maxHeader = fixedHeader + 11*binary.MaxVarintLen64

func statsFields(s *mvcc.Stats) [8]*int64 {
	return [8]*int64{
		&s.Keys, &s.Versions, &s.Tombstones, &s.KeyBytes,
		&s.ValueBytes, &s.LiveBytes, &s.Intents, &s.GarbageBytes,
	}
}

// encodeEntry returns a new slice with header and body.
func encodeEntry(h header, body []byte) []byte {
	dst := make([]byte, 0, maxHeader+len(body))
	dst = append(dst, entryFormat, byte(h.kind))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(h.closed))
	dst = binary.LittleEndian.AppendUint64(dst, h.bounds)
	dst = binary.LittleEndian.AppendUint64(dst, h.delta.Fingerprint)
	dst = binary.AppendUvarint(dst, uint64(h.term))
	dst = binary.AppendUvarint(dst, uint64(h.generation))
	dst = binary.AppendUvarint(dst, h.sequence)
	for _, f := range statsFields(&h.delta.Stats) {
		dst = binary.AppendVarint(dst, *f)
	}
	return append(dst, body...)
}

// decodeEntry splits an entry; body aliases data.
func decodeEntry(data []byte) (h header, body []byte, err error) {
	if len(data) < fixedHeader {
		return h, nil, fmt.Errorf("%w: %d bytes", errUnknownEntry, len(data))
	}
	h.kind = entryKind(data[1])
	if data[0] != entryFormat || h.kind < kindWrite || h.kind > kindAbsorb {
		return h, nil, fmt.Errorf("%w: format %d, kind %d", errUnknownEntry, data[0], data[1])
	}
	h.closed = hlc.Timestamp(binary.LittleEndian.Uint64(data[2:]))
	h.bounds = binary.LittleEndian.Uint64(data[10:])
	h.delta.Fingerprint = binary.LittleEndian.Uint64(data[18:])
	rest := data[fixedHeader:]
	var numbers [3]uint64
	for i := range numbers {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return h, nil, fmt.Errorf("%w: header is cut", errUnknownEntry)
		}
		numbers[i], rest = v, rest[n:]
	}
	h.term, h.generation = ids.Term(numbers[0]), ids.Generation(numbers[1])
	h.sequence = numbers[2]
	for _, f := range statsFields(&h.delta.Stats) {
		v, n := binary.Varint(rest)
		if n <= 0 {
			return h, nil, fmt.Errorf("%w: header is cut", errUnknownEntry)
		}
		*f, rest = v, rest[n:]
	}
	return h, rest, nil
}

// accepts says whether an entry takes effect. It depends on the entry and the
// replicated state alone, so every replica answers alike.
//
// The foreign term: a write that a leader evaluated in term T was checked
// against what T's leader knew (newest versions, identities, reads). If it
// enters the log in a later term, others may have written in between.
//
// The changed bounds: a write's keys were in the range when it was evaluated.
// A split holds every latch of the range from evaluation to apply, and raft
// keeps the order of one leader's proposals, so within a term no write can
// come between; this check is the second line of defence. It compares the
// bounds, not the generation: a replica change raises the generation, too, but
// takes nothing away from a write that was in flight, and to reject that write
// would break the leader's belief that what it proposed in its term applies.
//
// The marks of merges. A frozen range takes nothing but what ends that: not a
// write that a bound lets through, nor a change of its replicas. (Nothing was in
// flight when it froze: the freeze held the whole range.) The left half takes
// writes, but neither split nor replica change while it is marked. What marks,
// seals and absorbs needs the very generation that its leader saw, which each
// mark raises: so of two decisions of one merge the first in the log counts.
func (h header) accepts(s *state, entryTerm ids.Term, foreignTerm bool) bool {
	if h.term != entryTerm && !foreignTerm {
		return false
	}
	same := h.generation == ids.Generation(s.desc.GetGeneration())
	switch h.kind {
	case kindSplit, kindReplicas:
		return same && s.desc.GetMerge() == nil
	case kindMark, kindSeal, kindAbsorb:
		return same
	default:
		return h.bounds == s.bounds && phaseOf(s.desc) != phaseFrozen
	}
}
