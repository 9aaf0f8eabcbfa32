package core

import (
	"bytes"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Call is one operation of a user. Keys are internal keys. The core owns it
// from Start until Done; the byte slices in it must not change meanwhile.
//
// Spans. A scan may cross ranges: the response is one page, with More and
// ResumeKey for the rest of the whole span, and Timestamp for the calls of the
// pages that follow. A scan with Timestamp 0 begins a scan; then Limit, if not
// 0, is the limit of the whole scan, and a limit above kv.MaxScanLimit must be
// given as 0. A range deletion runs all its pages and answers once.
type Call struct {
	Request  kv.Request    // ID, Range, Generation and Identity are filled in by the core
	Deadline time.Duration // monotonic; 0: none
	// Done is called once with the final response, which it owns. Codes that a
	// retry could mend never reach it; past the deadline it is Unavailable, or
	// UnknownOutcome for a write that may have been applied (Count then says
	// how many keys a range deletion had deleted for certain). Done may call
	// Start and Cancel; it must not block.
	Done func(*kv.Response)

	op operation // core only
}

// operation is the progress of a call.
type operation struct {
	call     *Call
	sequence uint64 // of writes, shared by all attempts and pages
	page     leg    // the request, or the current page of a span
	ended    bool

	// Spans only; see span.go.
	start, end []byte        // the span
	fixed      hlc.Timestamp // the instant; 0: not fixed
	collecting bool
	asking     []*leg        // timestamp requests in flight
	cursor     []byte        // nobody was asked at or above it
	probing    bool          // how far the last of asking reaches is unknown
	highest    hlc.Timestamp // of the answers so far
	deleted    uint64        // keys deleted by the pages so far
}

// reads says that a verb writes nothing.
func reads(v kv.Verb) bool {
	return v == kv.VerbGet || v == kv.VerbScan || v == kv.VerbReadTimestamp
}

// begin sets a call going.
func (c *Core) begin(now time.Duration, call *Call) {
	op := &call.op
	*op = operation{call: call, fixed: call.Request.Timestamp}
	r := &call.Request
	if r.Verb == kv.VerbAtomic && len(r.Ops) > 0 {
		r.Key = r.Ops[0].Key
	}
	op.start, op.end = r.Key, r.End
	if !reads(r.Verb) {
		c.nextSequence++
		op.sequence = c.nextSequence
	}
	c.initLeg(&op.page, op, r)
	span := r.Verb == kv.VerbScan || r.Verb == kv.VerbDeleteRange
	switch {
	case span && bytes.Compare(op.start, op.end) >= 0:
		c.end(op, &kv.Response{Timestamp: op.fixed})
	case r.Verb == kv.VerbDeleteRange && op.fixed == 0:
		// The instant of a range deletion must be the same for all attempts,
		// so it is fixed before the first one, also within one range.
		c.collect(now, op)
	default:
		c.dispatch(now, &op.page)
	}
}

// end finishes a call; deliver hands the response out.
func (c *Core) end(op *operation, r *kv.Response) {
	if op.ended {
		return
	}
	op.ended = true
	c.drop(&op.page)
	for _, l := range op.asking {
		c.drop(l)
	}
	op.asking = nil
	c.finished = append(c.finished, finishedCall{op.call, r})
}

// giveUp ends a call whose time is over.
func (c *Core) giveUp(op *operation) {
	r := &kv.Response{Code: kv.CodeUnavailable, Message: op.trouble()}
	if op.page.unsettled() || op.deleted > 0 {
		r.Code = kv.CodeUnknownOutcome
	}
	r.Count = uint32(min(op.deleted, 1<<32-1))
	c.end(op, r)
}

// trouble says what was tried last, for people.
func (op *operation) trouble() string {
	if op.page.last != "" {
		return op.page.last
	}
	if g := op.page.gate; g != nil && g.probe != nil && g.probe.last != "" {
		return g.probe.last
	}
	for _, l := range op.asking {
		if l.last != "" {
			return l.last
		}
	}
	if op.page.state == legLookup {
		return "the range of the key could not be looked up in time"
	}
	return "no answer in time"
}
