package kv

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// blob draws a byte string; empty ones are nil, as they come back from the wire.
func blob(t *rapid.T, name string) []byte {
	b := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, name)
	if len(b) == 0 {
		return nil
	}
	return b
}

func drawTime(t *rapid.T) hlc.Timestamp {
	return hlc.Timestamp(rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64()).Draw(t, "time"))
}

func drawRequest(t *rapid.T) Request {
	r := Request{
		ID:              rapid.Uint64().Draw(t, "id"),
		Verb:            Verb(rapid.Byte().Draw(t, "verb")),
		Flags:           rapid.Byte().Draw(t, "flags"),
		Expect:          Expect(rapid.Byte().Draw(t, "expect")),
		Range:           ids.RangeID(rapid.Uint64().Draw(t, "range")),
		Generation:      ids.Generation(rapid.Uint64().Draw(t, "generation")),
		Timestamp:       drawTime(t),
		ExpectedVersion: drawTime(t),
		Limit:           rapid.Uint32().Draw(t, "limit"),
		Key:             blob(t, "key"),
		End:             blob(t, "end"),
		Value:           blob(t, "value"),
		Expected:        blob(t, "expected"),
	}
	if rapid.Bool().Draw(t, "identity") {
		r.Identity = Identity{Client: rapid.Uint64().Draw(t, "client"),
			Sequence:  rapid.Uint64().Draw(t, "sequence"),
			Operation: rapid.Uint32().Draw(t, "operation"), Floor: drawTime(t)}
	}
	for range rapid.IntRange(0, 3).Draw(t, "ops") {
		r.Ops = append(r.Ops, Op{Key: blob(t, "key"), Value: blob(t, "value"),
			Expected: blob(t, "expected"), ExpectedVersion: drawTime(t),
			Expect: Expect(rapid.Byte().Draw(t, "expect")),
			Delete: rapid.Bool().Draw(t, "delete")})
	}
	return r
}

func drawResponse(t *rapid.T) Response {
	r := Response{
		ID:               rapid.Uint64().Draw(t, "id"),
		Code:             Code(rapid.Byte().Draw(t, "code")),
		Found:            rapid.Bool().Draw(t, "found"),
		More:             rapid.Bool().Draw(t, "more"),
		MaybeApplied:     rapid.Bool().Draw(t, "maybe"),
		Leader:           ids.NodeID(rapid.Uint64().Draw(t, "leader")),
		RetryAfterMillis: rapid.Uint32().Draw(t, "retry"),
		Count:            rapid.Uint32().Draw(t, "count"),
		Timestamp:        drawTime(t),
		Value:            blob(t, "value"),
		ResumeKey:        blob(t, "resume"),
		Message:          rapid.String().Draw(t, "message"),
	}
	for range rapid.IntRange(0, 3).Draw(t, "rows") {
		r.Rows = append(r.Rows, KeyValue{Key: blob(t, "key"), Value: blob(t, "value"),
			Version: drawTime(t)})
	}
	for range rapid.IntRange(0, 3).Draw(t, "descriptors") {
		r.Descriptors = append(r.Descriptors, blob(t, "descriptor"))
	}
	return r
}

func TestFramesComeBackAsTheyWent(t *testing.T) {
	t.Parallel()
	var f Frame // used again and again, as a stream does
	rapid.Check(t, func(t *rapid.T) {
		in := Frame{Kind: FrameKind(rapid.IntRange(1, 5).Draw(t, "kind")), Stamp: drawTime(t)}
		switch in.Kind {
		case FrameHello:
			in.Hello = blob(t, "hello")
		case FrameRequests:
			for range rapid.IntRange(0, 5).Draw(t, "requests") {
				in.Requests = append(in.Requests, drawRequest(t))
			}
		case FrameResponses:
			for range rapid.IntRange(0, 5).Draw(t, "responses") {
				in.Responses = append(in.Responses, drawResponse(t))
			}
		}
		data := in.AppendTo([]byte("before"))[len("before"):]
		if len(data) != in.Size() {
			t.Fatalf("%d bytes, Size says %d", len(data), in.Size())
		}
		if err := DecodeFrame(data, &f); err != nil {
			t.Fatal(err)
		}
		if f.Kind != in.Kind || f.Stamp != in.Stamp || !bytes.Equal(f.Hello, in.Hello) ||
			len(f.Requests) != len(in.Requests) || len(f.Responses) != len(in.Responses) {
			t.Fatalf("got %+v\nwant %+v", f, in)
		}
		for i := range in.Requests {
			if !reflect.DeepEqual(f.Requests[i], in.Requests[i]) {
				t.Fatalf("got %+v\nwant %+v", f.Requests[i], in.Requests[i])
			}
		}
		for i := range in.Responses {
			if !reflect.DeepEqual(f.Responses[i], in.Responses[i]) {
				t.Fatalf("got %+v\nwant %+v", f.Responses[i], in.Responses[i])
			}
		}
		cut := rapid.IntRange(0, len(data)-1).Draw(t, "cut")
		if err := DecodeFrame(data[:cut], &f); !errors.Is(err, ErrMalformed) {
			t.Fatalf("%d of %d bytes decode: %v", cut, len(data), err)
		}
		if err := DecodeFrame(append(data, 0), &f); !errors.Is(err, ErrMalformed) {
			t.Fatalf("a byte too many decodes: %v", err)
		}
	})
}

func TestAReceiverOfYesterdaySkipsFieldsOfTomorrow(t *testing.T) {
	t.Parallel()
	// present has bits 0 and 12: a key, and something unknown of 3 bytes.
	request := []byte{byte(VerbPut), 0x81, 0x20, 5, 1, 'k', 'n', 'e', 'w'}
	data := AppendFrameHeader(nil, FrameRequests, 1, 2)
	data = appendBytes(data, request)
	data = AppendRequest(data, &Request{ID: 6, Verb: VerbGet, Key: []byte("q")})
	var f Frame
	if err := DecodeFrame(data, &f); err != nil {
		t.Fatal(err)
	}
	if r := f.Requests[0]; r.Verb != 0 || r.ID != 5 || string(r.Key) != "k" {
		t.Errorf("request with an unknown field: %+v", r)
	}
	if r := f.Requests[1]; r.Verb != VerbGet || r.ID != 6 {
		t.Errorf("request after it: %+v", r)
	}
	response := []byte{byte(CodeOK), 0x84, 0x20, 7, 1, 2, 3}
	data = appendBytes(AppendFrameHeader(nil, FrameResponses, 1, 1), response)
	if err := DecodeFrame(data, &f); err != nil {
		t.Fatal(err)
	}
	if r := f.Responses[0]; r.ID != 7 || !r.Found || r.Code != CodeOK {
		t.Errorf("response with an unknown field: %+v", r)
	}
}

func TestCountsThatLieAllocateNothing(t *testing.T) {
	t.Parallel()
	header := func(kind FrameKind, count int) []byte {
		return AppendFrameHeader(nil, kind, 1, count)
	}
	many := append(header(FrameResponses, 1), 9, 0, 0x10, 1) // code, rows, id
	many = append(many, 0xff, 0xff, 0xff, 0xff, 0x0f, 0)
	cases := map[string][]byte{
		"requests":            header(FrameRequests, MaxFrameItems),
		"responses":           header(FrameResponses, MaxFrameItems),
		"more than the limit": append(header(FrameRequests, MaxFrameItems+1), 1, 1, 1, 1),
		"rows":                many,
		"hello twice":         append(header(FrameHello, 2), 0),
		"stamp with items":    header(FrameStamp, 1),
		"unknown kind":        header(9, 0),
		"nothing":             nil,
		"too long":            make([]byte, MaxFrameBytes+1),
	}
	for name, data := range cases {
		var f Frame
		err := DecodeFrame(data, &f)
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrFrameTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
		if cap(f.Requests) > 1 || cap(f.Responses) > 1 {
			t.Errorf("%s: allocated for %d requests, %d responses", name, cap(f.Requests),
				cap(f.Responses))
		}
	}
}

func TestTheMostSwollenFrameIsRefused(t *testing.T) {
	// A response of single-byte descriptors takes 24 times its length.
	count := 4 << 20
	body := append([]byte{0}, 0x80, 0x08, 1)
	body = append(body, 0x80, 0x80, 0x80, 0x02) // 4 Mi
	body = append(body, make([]byte, count)...)
	data := appendBytes(AppendFrameHeader(nil, FrameResponses, 1, 1), body)
	var before, after runtime.MemStats
	var f Frame
	runtime.ReadMemStats(&before)
	err := DecodeFrame(data, &f)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrFrameTooLarge) {
		t.Errorf("decodes: %v", err)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > uint64(2*len(data)+decodeSlack+1<<16) {
		t.Errorf("%d bytes allocated for a frame of %d", n, len(data))
	}
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add(AppendHello(nil, 7, []byte("hello")))
	f.Add(AppendStamp(nil, 7))
	f.Add(AppendRequests(nil, 7, benchRequests(3)))
	f.Add(AppendRequests(nil, 7, []Request{{ID: 1, Verb: VerbAtomic, Ops: []Op{
		{Key: []byte("k"), Expect: ExpectValue, Expected: []byte("e")}, {Delete: true}}}}))
	f.Add(AppendResponses(nil, 7, []Response{{ID: 1, Code: CodeWrongRange, Message: "m",
		Descriptors: [][]byte{{1}, nil}}, {ID: 2, Rows: []KeyValue{{Key: []byte("k")}}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var frame, again Frame
		if err := DecodeFrame(data, &frame); err != nil {
			return
		}
		out := frame.AppendTo(nil)
		if len(out) != frame.Size() {
			t.Fatalf("%d bytes, Size says %d", len(out), frame.Size())
		}
		if err := DecodeFrame(out, &again); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(frame, again) {
			t.Fatalf("%+v\nencodes and decodes to\n%+v", frame, again)
		}
	})
}

func TestNamesAreDistinct(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for i := range 20 {
		for _, name := range []string{Verb(i).String(), Code(i).String()} {
			if seen[name] {
				t.Errorf("%q names two things", name)
			}
			seen[name] = true
		}
	}
	if Verb(99).String() != "verb(99)" || Code(99).String() != "code(99)" {
		t.Error("unknown numbers have no name")
	}
}

func TestUserKeysAreStrippedOfTheirPrefixOnly(t *testing.T) {
	t.Parallel()
	k := UserKey(nil, []byte("a"))
	if got, ok := StripUserKey(k); !ok || string(got) != "a" {
		t.Errorf("%q %v", got, ok)
	}
	for _, bad := range [][]byte{nil, {}, {SystemPrefix, 'a'}, {EndPrefix}} {
		if _, ok := StripUserKey(bad); ok {
			t.Errorf("%x passes for a user's key", bad)
		}
	}
	if got, ok := StripUserKey([]byte{UserPrefix}); !ok || len(got) != 0 {
		t.Errorf("the empty user key: %q %v", got, ok)
	}
}

func benchRequests(n int) []Request {
	requests := make([]Request, n)
	for i := range requests {
		requests[i] = Request{ID: uint64(1000 + i), Verb: VerbPut, Range: 42, Generation: 3,
			Identity: Identity{Client: 1 << 60, Sequence: uint64(70_000 + i), Floor: 1 << 60},
			Key:      fmt.Appendf(nil, "\x20user%012d", i), Value: make([]byte, 256)}
	}
	return requests
}

func BenchmarkFrame(b *testing.B) {
	for _, n := range []int{1, 32} {
		in := Frame{Kind: FrameRequests, Stamp: 1 << 60, Requests: benchRequests(n)}
		data := in.AppendTo(nil)
		b.Run(fmt.Sprintf("append/%d", n), func(b *testing.B) {
			buf := make([]byte, 0, in.Size())
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				buf = in.AppendTo(buf[:0])
			}
		})
		b.Run(fmt.Sprintf("decode/%d", n), func(b *testing.B) {
			var f Frame
			b.ReportAllocs()
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := DecodeFrame(data, &f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
