package kv

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// ErrMalformed says that bytes are not a frame. The stream that they came from
// must be broken: there is no telling where the next frame begins.
var ErrMalformed = errors.New("malformed frame")

// ErrFrameTooLarge says that a frame is above a bound of the format
// (MaxFrameBytes, MaxFrameItems, or the memory to decode it).
var ErrFrameTooLarge = errors.New("frame too large")

// decodeSlack is what decoding may allocate beyond twice the frame's length.
// Items are larger in memory than on the wire (a get takes some 40 bytes there
// and 208 here), and the slack covers that for a frame of MaxFrameItems; rows
// and the rest draw on it too.
const decodeSlack = 16 << 20

// The shortest encodings, by which counts are checked before memory is taken.
const (
	minItemBytes       = 4 // size, verb or code, present, id
	minOpBytes         = 1 // present
	minRowBytes        = 1 + 1 + 8
	minDescriptorBytes = 1
)

// DecodeFrame decodes a frame into f, replacing what it held; the capacity of
// f.Requests and f.Responses is used again if it suffices. Byte strings alias
// data, which nobody may write to afterwards. A frame that is not one gives
// ErrMalformed or ErrFrameTooLarge, and f is then without items. It never
// allocates more than twice the length of data and a constant.
func DecodeFrame(data []byte, f *Frame) error {
	*f = Frame{Requests: f.Requests[:0], Responses: f.Responses[:0]}
	if len(data) > MaxFrameBytes {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrFrameTooLarge, len(data),
			MaxFrameBytes)
	}
	d := decoder{data: data, memory: 2*len(data) + decodeSlack}
	f.Kind = FrameKind(d.byte())
	f.Stamp = d.timestamp()
	count := d.uvarint()
	if count > MaxFrameItems {
		d.fail(ErrFrameTooLarge)
	}
	switch f.Kind {
	case FrameHello:
		f.Hello = d.bytes()
		d.check(count == 1)
	case FrameRequests:
		f.Requests = d.requests(f.Requests, count)
	case FrameResponses:
		f.Responses = d.responses(f.Responses, count)
	case FrameStamp, FrameLeaving:
		d.check(count == 0)
	default:
		d.check(false)
	}
	d.check(len(d.data) == 0)
	if d.err != nil {
		f.Hello, f.Requests, f.Responses = nil, f.Requests[:0], f.Responses[:0]
		return fmt.Errorf("decode frame of %d bytes, kind %d, %d bytes before its end: %w",
			len(data), f.Kind, len(d.data), d.err)
	}
	return nil
}

// decoder reads from data; after an error everything it reads is zero.
type decoder struct {
	data   []byte
	memory int // bytes that may still be allocated
	err    error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

func (d *decoder) check(ok bool) {
	if !ok {
		d.fail(ErrMalformed)
	}
}

func (d *decoder) byte() byte {
	if d.err != nil || len(d.data) < 1 {
		d.fail(ErrMalformed)
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return b
}

func (d *decoder) fixed() uint64 {
	if d.err != nil || len(d.data) < 8 {
		d.fail(ErrMalformed)
		return 0
	}
	x := binary.LittleEndian.Uint64(d.data)
	d.data = d.data[8:]
	return x
}

func (d *decoder) timestamp() hlc.Timestamp { return hlc.Timestamp(d.fixed()) }

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	if len(d.data) > 0 && d.data[0] < 0x80 { // most are one byte
		x := d.data[0]
		d.data = d.data[1:]
		return uint64(x)
	}
	x, n := binary.Uvarint(d.data)
	if n <= 0 {
		d.fail(ErrMalformed)
		return 0
	}
	d.data = d.data[n:]
	return x
}

func (d *decoder) uvarint32() uint32 {
	x := d.uvarint()
	d.check(x <= math.MaxUint32)
	return uint32(x)
}

// bytes aliases data; nil if empty.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if d.err != nil || n > uint64(len(d.data)) {
		d.fail(ErrMalformed)
		return nil
	}
	if n == 0 {
		return nil
	}
	b := d.data[:n:n]
	d.data = d.data[n:]
	return b
}

// room says whether count elements, each of at least so many bytes on the wire
// and of size bytes in memory, can be there and may be allocated.
func (d *decoder) room(count uint64, wire int, size uintptr) bool {
	if d.err != nil || count > uint64(len(d.data)/wire) {
		d.fail(ErrMalformed)
		return false
	}
	d.memory -= int(count) * int(size)
	if d.memory < 0 {
		d.fail(ErrFrameTooLarge)
		return false
	}
	return true
}

// item cuts the next item off, to be decoded by itself.
func (d *decoder) item() (rest []byte) {
	body := d.bytes()
	rest = d.data
	d.data = body
	return rest
}

func (d *decoder) requests(into []Request, count uint64) []Request {
	if uint64(cap(into)) < count {
		if !d.room(count, minItemBytes, unsafe.Sizeof(Request{})) {
			return into
		}
		into = make([]Request, 0, count)
	}
	for range count {
		if d.err != nil {
			break
		}
		rest := d.item()
		into = append(into, Request{})
		if unknown := d.request(&into[len(into)-1]); unknown {
			d.data = nil
		}
		d.check(len(d.data) == 0)
		if d.err == nil {
			d.data = rest
		}
	}
	return into
}

// request decodes the body of a request and says whether it has fields that
// this code does not know; it then has no verb.
func (d *decoder) request(r *Request) (unknown bool) {
	r.Verb = Verb(d.byte())
	p := d.uvarint()
	r.ID = d.uvarint()
	if p&reqKey != 0 {
		r.Key = d.bytes()
	}
	if p&reqRoute != 0 {
		r.Range = ids.RangeID(d.uvarint())
		r.Generation = ids.Generation(d.uvarint())
	}
	if p&reqIdentity != 0 {
		r.Identity.Client = d.fixed()
		r.Identity.Sequence = d.uvarint()
		r.Identity.Operation = d.uvarint32()
		r.Identity.Floor = d.timestamp()
	}
	if p&reqValue != 0 {
		r.Value = d.bytes()
	}
	if p&reqTimestamp != 0 {
		r.Timestamp = d.timestamp()
	}
	if p&reqFlags != 0 {
		r.Flags = d.byte()
	}
	if p&reqLimit != 0 {
		r.Limit = d.uvarint32()
	}
	if p < reqEnd {
		return false
	}
	if p&reqEnd != 0 {
		r.End = d.bytes()
	}
	if p&reqExpect != 0 {
		r.Expect = Expect(d.byte())
	}
	if p&reqExpected != 0 {
		r.Expected = d.bytes()
	}
	if p&reqExpectedVersion != 0 {
		r.ExpectedVersion = d.timestamp()
	}
	if p&reqOps != 0 {
		r.Ops = d.ops()
	}
	if p&^uint64(reqKnown) != 0 {
		r.Verb = 0
		return true
	}
	return false
}

func (d *decoder) ops() []Op {
	count := d.uvarint()
	if !d.room(count, minOpBytes, unsafe.Sizeof(Op{})) || count == 0 {
		return nil
	}
	ops := make([]Op, count)
	for i := range ops {
		o := &ops[i]
		p := d.byte()
		d.check(p&^byte(opKnown) == 0)
		if p&opKey != 0 {
			o.Key = d.bytes()
		}
		if p&opValue != 0 {
			o.Value = d.bytes()
		}
		if p&opExpected != 0 {
			o.Expected = d.bytes()
		}
		if p&opExpectedVersion != 0 {
			o.ExpectedVersion = d.timestamp()
		}
		if p&opExpect != 0 {
			o.Expect = Expect(d.byte())
		}
		o.Delete = p&opDelete != 0
	}
	return ops
}

func (d *decoder) responses(into []Response, count uint64) []Response {
	if uint64(cap(into)) < count {
		if !d.room(count, minItemBytes, unsafe.Sizeof(Response{})) {
			return into
		}
		into = make([]Response, 0, count)
	}
	for range count {
		if d.err != nil {
			break
		}
		rest := d.item()
		into = append(into, Response{})
		if unknown := d.response(&into[len(into)-1]); unknown {
			d.data = nil
		}
		d.check(len(d.data) == 0)
		if d.err == nil {
			d.data = rest
		}
	}
	return into
}

// response decodes the body of a response and says whether it has fields that
// this code does not know; they are ignored.
func (d *decoder) response(r *Response) (unknown bool) {
	r.Code = Code(d.byte())
	p := d.uvarint()
	r.ID = d.uvarint()
	if p&respTimestamp != 0 {
		r.Timestamp = d.timestamp()
	}
	if p&respValue != 0 {
		r.Value = d.bytes()
	}
	r.Found = p&respFound != 0
	r.More = p&respMore != 0
	if p < respRows {
		return false
	}
	if p&respRows != 0 {
		r.Rows = d.rows()
	}
	if p&respResumeKey != 0 {
		r.ResumeKey = d.bytes()
	}
	if p&respLeader != 0 {
		r.Leader = ids.NodeID(d.uvarint())
	}
	r.MaybeApplied = p&respMaybeApplied != 0
	if p&respRetryAfter != 0 {
		r.RetryAfterMillis = d.uvarint32()
	}
	if p&respCount != 0 {
		r.Count = d.uvarint32()
	}
	if p&respDescriptors != 0 {
		r.Descriptors = d.descriptors()
	}
	if p&respMessage != 0 {
		b := d.bytes()
		d.memory -= len(b)
		r.Message = string(b)
	}
	return p >= respMessage<<1
}

func (d *decoder) rows() []KeyValue {
	count := d.uvarint()
	if !d.room(count, minRowBytes, unsafe.Sizeof(KeyValue{})) || count == 0 {
		return nil
	}
	rows := make([]KeyValue, count)
	for i := range rows {
		rows[i].Key = d.bytes()
		rows[i].Value = d.bytes()
		rows[i].Version = d.timestamp()
	}
	return rows
}

func (d *decoder) descriptors() [][]byte {
	count := d.uvarint()
	if !d.room(count, minDescriptorBytes, unsafe.Sizeof([]byte(nil))) || count == 0 {
		return nil
	}
	descriptors := make([][]byte, count)
	for i := range descriptors {
		descriptors[i] = d.bytes()
	}
	return descriptors
}
