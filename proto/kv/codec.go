package kv

import (
	"encoding/binary"
	"math/bits"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// The format of a frame. Numbers of fixed width are little endian, u is an
// unsigned varint, "bytes" is u followed by so many bytes.
//
//	frame     kind(1) stamp(8) count(u) item...
//	hello     bytes                                     (count is 1)
//	request   size(u) verb(1) present(u) id(u) field...
//	response  size(u) code(1) present(u) id(u) field...
//	op        present(1) field...
//
// Stamp and leaving frames have no items. size counts what follows it in the item. present
// has a bit for each field that is there; fields stand in the order of their
// bits, and what is not there is zero. An empty byte string is not there
// either, so nil and empty are the same on the wire and both decode to nil.
//
//	bit  request                       response                  op
//	  0  key bytes                     timestamp 8               key bytes
//	  1  range u, generation u         value bytes               value bytes
//	  2  identity (see below)          found (no field)          expected bytes
//	  3  value bytes                   more (no field)           expected version 8
//	  4  timestamp 8                   rows                      expect 1
//	  5  flags 1                       resume key bytes          delete (no field)
//	  6  limit u                       leader u
//	  7  end bytes                     maybe applied (no field)
//	  8  expect 1                      retry after millis u
//	  9  expected bytes                count u
//	 10  expected version 8            descriptors
//	 11  ops                           message bytes
//
//	identity     client(8) sequence(u) operation(u) floor(8)
//	ops          count(u) op...
//	rows         count(u), each key bytes, value bytes, version(8)
//	descriptors  count(u), each bytes
//
// The frequent fields have the low bits: a get or a put of a client names its
// fields in one byte.
//
// Growth: a new field takes the next bit, above all others. A request with
// bits that the receiver does not know decodes with verb 0, so that it fails
// (unknown verb) rather than being done without its new part; in a response
// unknown fields are ignored. size lets both skip the rest. An op has no size:
// a new field of ops needs a new field of the request. Items must fill their
// size, and frames their length, exactly.
//
// Bounds: MaxFrameBytes, MaxFrameItems, and what DecodeFrame allocates. The
// sender splits; see Size of Request and Response.

// MaxFrameItems bounds the requests or responses of one frame: with
// MaxFrameBytes it is what a sender splits by.
const MaxFrameItems = 1 << 16

// FrameOverhead is above the bytes of a frame beside its items.
const FrameOverhead = 1 + 8 + binary.MaxVarintLen64

const (
	reqKey = 1 << iota
	reqRoute
	reqIdentity
	reqValue
	reqTimestamp
	reqFlags
	reqLimit
	reqEnd
	reqExpect
	reqExpected
	reqExpectedVersion
	reqOps

	reqKnown = 1<<iota - 1
)

const (
	respTimestamp = 1 << iota
	respValue
	respFound
	respMore
	respRows
	respResumeKey
	respLeader
	respMaybeApplied
	respRetryAfter
	respCount
	respDescriptors
	respMessage
)

const (
	opKey = 1 << iota
	opValue
	opExpected
	opExpectedVersion
	opExpect
	opDelete

	opKnown = 1<<iota - 1
)

// Size returns the exact length of what AppendTo appends.
func (f *Frame) Size() int {
	n := 1 + 8
	switch f.Kind {
	case FrameHello:
		n += 1 + bytesLen(f.Hello)
	case FrameRequests:
		n += uvarintLen(uint64(len(f.Requests)))
		for i := range f.Requests {
			n += f.Requests[i].Size()
		}
	case FrameResponses:
		n += uvarintLen(uint64(len(f.Responses)))
		for i := range f.Responses {
			n += f.Responses[i].Size()
		}
	default:
		n++
	}
	return n
}

// AppendTo appends the encoded frame to dst and returns the extended slice. It
// allocates nothing if dst has room (Size). Only the items of its kind are
// written.
func (f *Frame) AppendTo(dst []byte) []byte {
	switch f.Kind {
	case FrameHello:
		return AppendHello(dst, f.Stamp, f.Hello)
	case FrameRequests:
		return AppendRequests(dst, f.Stamp, f.Requests)
	case FrameResponses:
		return AppendResponses(dst, f.Stamp, f.Responses)
	default:
		return AppendFrameHeader(dst, f.Kind, f.Stamp, 0)
	}
}

// AppendHello appends a whole Hello frame; hello is a marshalled metapb.Hello.
func AppendHello(dst []byte, stamp hlc.Timestamp, hello []byte) []byte {
	return appendBytes(AppendFrameHeader(dst, FrameHello, stamp, 1), hello)
}

// AppendStamp appends a whole frame that is only a stamp.
func AppendStamp(dst []byte, stamp hlc.Timestamp) []byte {
	return AppendFrameHeader(dst, FrameStamp, stamp, 0)
}

// AppendRequests appends a whole frame of requests.
func AppendRequests(dst []byte, stamp hlc.Timestamp, requests []Request) []byte {
	dst = AppendFrameHeader(dst, FrameRequests, stamp, len(requests))
	for i := range requests {
		dst = AppendRequest(dst, &requests[i])
	}
	return dst
}

// AppendResponses appends a whole frame of responses.
func AppendResponses(dst []byte, stamp hlc.Timestamp, responses []Response) []byte {
	dst = AppendFrameHeader(dst, FrameResponses, stamp, len(responses))
	for i := range responses {
		dst = AppendResponse(dst, &responses[i])
	}
	return dst
}

// AppendFrameHeader appends the head of a frame of count items, which the
// caller appends next with AppendRequest or AppendResponse: for senders whose
// items do not lie in one slice.
func AppendFrameHeader(dst []byte, kind FrameKind, stamp hlc.Timestamp, count int) []byte {
	dst = append(dst, byte(kind))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(stamp))
	return binary.AppendUvarint(dst, uint64(count))
}

// Size returns the exact length of the encoded request.
func (r *Request) Size() int {
	n := r.bodySize()
	return uvarintLen(uint64(n)) + n
}

// Size returns the exact length of the encoded response.
func (r *Response) Size() int {
	n := r.bodySize()
	return uvarintLen(uint64(n)) + n
}

func appendBytes(dst, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendFixed(dst []byte, t hlc.Timestamp) []byte {
	return binary.LittleEndian.AppendUint64(dst, uint64(t))
}

// uvarintLen is the length of x as a varint: seven bits a byte.
func uvarintLen(x uint64) int { return (bits.Len64(x|1) + 6) / 7 }

func bytesLen(b []byte) int { return uvarintLen(uint64(len(b))) + len(b) }

// when is bit if the condition holds.
func when(condition bool, bit uint64) uint64 {
	if condition {
		return bit
	}
	return 0
}
