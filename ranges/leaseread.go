package ranges

import (
	"time"

	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// leaseReads are reads on their caller's goroutine: one, or the gets of a frame,
// which share the clock, the lease and the iterator. They need no shard and no
// message as long as this replica holds a lease. What cannot go on here goes to
// the shard with the timestamp that it has (read.Run).
//
// The steps, each for all reads before the next one begins:
//
//	fix       the term that is led; the timestamp, and the clock moved to it
//	stripes   no write in flight that could lie at or below it (inflight.go)
//	lease     held for that term and timestamp; then the state once more
//	iterator  opened
//	check     bounds, threshold, existence once more; read; answer
//
// The read takes effect when its timestamp is fixed. What it must see:
//
//   - What this leader acknowledged before, it had published before: the iterator
//     shows it, and its timestamp lies below, being of the same clock.
//   - What earlier leaders acknowledged is applied where a leader is ready.
//   - No later leader existed before the lease was found to hold, hence none
//     acknowledged anything before the read came (R8).
//
// What it must not miss, now or later, is any version at or below its timestamp:
//
//   - Of this leader: the stripes. They are looked at before the state is loaded,
//     since who loses leadership publishes that before he retracts: a write that
//     was retracted unapplied is told by the state that is loaded afterwards.
//   - Of a later leader: the lease held for the timestamp, after the clock was
//     moved to it, so every later leader's clock begins above it (R9).
//   - Of a leader of a right half: a split marks the range before it is proposed.
//     A read that finds no mark has fixed its timestamp before, so the frames
//     with the split's entry carry a stamp at or above it; one that finds the
//     mark gone finds the new bounds in the state.
//
// Pauses between the steps do no harm: what may happen in one makes a later step
// refuse, or lies above the timestamp.
//
// A get reads on the caller's goroutine, although that may read blocks from disk
// and is the goroutine that reads a client's stream: to hand it to another one
// costs more than most gets do. A run of slow ones is cut off: when those of a
// frame have taken inlineBudget, the rest goes to Config.Execute, so that a
// frame of misses holds up its stream by the budget and one get. Scans always go there.
type leaseReads struct {
	table *Table
	list  []read
	one   [1]read // room for list
	it    *mvcc.Iterator

	timed int           // how many reads stand for others, see load.go
	began time.Duration // if timed
}

const (
	// inlineBudget is how long the gets of one frame may take on their caller's
	// goroutine; inlineCheck is how many are served between two looks at the
	// clock (one costs a tenth of a get).
	inlineBudget = 500 * time.Microsecond
	inlineCheck  = 8
)

// Call is a request and what takes its response, see Table.Submit.
type Call struct {
	Request *kv.Request
	Done    func(*kv.Response)
}

// SubmitBatch submits requests that came together, as Submit does each, but
// cheaper: their gets share one look at the clock and one iterator. The calls
// are not kept. Any goroutine.
func (t *Table) SubmitBatch(calls []Call) {
	gets := 0
	for i := range calls {
		if calls[i].Request.Verb == kv.VerbGet {
			gets++
		} else {
			t.Submit(calls[i].Request, calls[i].Done)
		}
	}
	if gets == 0 {
		return
	}
	b := &leaseReads{table: t}
	b.list = b.one[:0]
	if gets > len(b.one) {
		b.list = make([]read, 0, gets)
	}
	for i := range calls {
		c := &calls[i]
		if c.Request.Verb != kv.VerbGet {
			continue
		}
		if r := t.route(c.Request, c.Done); r != nil {
			b.list = append(b.list, read{r: r, req: c.Request, done: c.Done})
		}
	}
	b.begin()
}

// pause goes on with the next step, now or when the simulator says.
func (b *leaseReads) pause(step string, next func(*leaseReads)) {
	if p := b.table.cfg.Pause; p != nil {
		p(step, func() { next(b) })
		return
	}
	next(b)
}

// respond answers a read that is still this goroutine's.
func (rd *read) respond(resp *kv.Response) {
	rd.gone = true
	rd.answer(resp)
}

// begin looks in which term each range is led here.
func (b *leaseReads) begin() {
	t := b.table
	for i := range b.list {
		rd := &b.list[i]
		s := rd.r.state.Load()
		if !s.lead.mine || s.destroyed {
			rd.respond(rd.r.notLeader(false))
			continue
		}
		b.clockIn(rd, i)
		rd.term = s.lead.term
		// Until an entry of the own term is applied, what earlier leaders
		// acknowledged may be missing here (R8).
		rd.slow = !s.lead.ready && !canary.On(canary.LeaseBeforeOwnTerm)
		if rd.req.Verb == kv.VerbGet {
			rd.hash = hashOf(rd.r, rd.req.Key)
			rd.word = t.stripes.of(rd.hash).word.Load()
		}
	}
	b.pause("fix", (*leaseReads).fix)
}

// fix fixes the timestamps: one for all that ask for none, each its own for the
// others, to which the clock moves (R9c).
func (b *leaseReads) fix() {
	clock := b.table.cfg.Clock
	var now hlc.Timestamp
	for i := range b.list {
		rd := &b.list[i]
		if rd.gone {
			continue
		}
		var err error
		switch {
		case rd.req.Timestamp != 0:
			rd.ts = rd.req.Timestamp
			if !canary.On(canary.ReadClockStays) {
				err = clock.Update(rd.ts)
			}
		case now == 0:
			now, err = clock.Now()
			rd.ts = now
		default:
			rd.ts = now
		}
		if err != nil {
			rd.respond(clockError(err))
		}
	}
	b.pause("stripes", (*leaseReads).look)
}

// look looks for writes in flight.
func (b *leaseReads) look() {
	for i := range b.list {
		rd := &b.list[i]
		if !rd.gone && !rd.slow && !canary.On(canary.ReadSkipsLatches) {
			rd.slow = rd.meetsWrites()
		}
	}
	b.pause("lease", (*leaseReads).ask)
}

func (rd *read) meetsWrites() bool {
	m := &rd.r.moving
	if m.splits.Load() > 0 {
		return true
	}
	switch rd.req.Verb {
	case kv.VerbGet:
		word := rd.r.table.stripes.of(rd.hash).word.Load()
		if word != rd.word {
			rd.word = busy // a write ended since: what is read may not be the newest
		}
		return !quiet(word)
	case kv.VerbScan:
		return m.writes.Load() > 0
	default: // fixes a timestamp and reads nothing
		return false
	}
}

// ask asks for the lease and then loads the state again.
func (b *leaseReads) ask() {
	// The answer of before holds for the same range, term and timestamp, too: all
	// that had to come before the question did.
	var r *Replica
	var term ids.Term
	var ts hlc.Timestamp
	var held bool
	left := 0
	for i := range b.list {
		rd := &b.list[i]
		if rd.gone {
			continue
		}
		if rd.slow {
			rd.queue()
			continue
		}
		if rd.r != r || rd.term != term || rd.ts != ts {
			r, term, ts = rd.r, rd.term, rd.ts
			held = r.holdsLease(term, ts)
		}
		if !held {
			rd.queue()
			continue
		}
		rd.leased = true
		rd.state = rd.r.state.Load()
		if !rd.enter() {
			left++
		}
	}
	if left > 0 {
		b.pause("iterator", (*leaseReads).open)
		return
	}
	b.clockOut()
}

// enter checks the bounds under the state in which the read is led, and answers
// what needs no iterator here. ended: nothing is left to be done here.
func (rd *read) enter() (ended bool) {
	s, r := rd.state, rd.r
	if !s.lead.mine || s.lead.term != rd.term || s.destroyed || !s.initialised() {
		rd.respond(r.notLeader(false))
		return true
	}
	if s.frozen() {
		rd.respond(r.notLeader(false))
		return true
	}
	if resp := rd.admit(s); resp != nil {
		rd.respond(resp)
		return true
	}
	if rd.req.Verb == kv.VerbScan {
		rd.gone = true
		r.reads.push(rd, r)
		return true
	}
	if resp := rd.fromCache(); resp != nil {
		rd.respond(resp)
		return true
	}
	return false
}

// open opens the iterator that all gets share. It has no bounds: each get is
// checked against those of its range before and after.
func (b *leaseReads) open() {
	it, err := mvcc.NewIterator(b.table.cfg.Store.State().DB(), nil, nil)
	if err != nil {
		for i := range b.list {
			if rd := &b.list[i]; !rd.gone {
				rd.respond(internalError(err))
			}
		}
		return
	}
	b.it = it
	b.pause("check", (*leaseReads).serve)
}

// serve reads and answers.
func (b *leaseReads) serve() {
	t := b.table
	var began time.Duration
	served, late := 0, false
	for i := range b.list {
		rd := &b.list[i]
		if rd.gone {
			continue
		}
		if len(b.list) > inlineCheck && served%inlineCheck == 0 {
			now := t.cfg.Physical.Monotonic()
			if served == 0 {
				began = now
			}
			late = late || now-began > inlineBudget
		}
		served++
		if late {
			rd.gone = true
			rd.r.reads.push(rd, rd.r)
			continue
		}
		rd.respond(rd.finish(b.it))
	}
	if err := b.it.Close(); err != nil {
		t.cfg.Logger.Error("close iterator", "error", err)
	}
	b.clockOut()
}

// finish checks a get once more, with the iterator open, and reads.
func (rd *read) finish(it *mvcc.Iterator) *kv.Response {
	now, there := rd.r.afterOpen()
	if !there {
		return rd.r.notLeader(false)
	}
	if resp := rd.checkAgain(now, rd.state); resp != nil {
		return resp
	}
	resp := rd.serve(it)
	rd.toCache(now, resp)
	return resp
}
