package ranges

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// While leadership is handed over writes are not proposed. The answer says that
// it is a matter of a moment, and afterwards who leads.
func TestWriteDuringATransferIsToldToComeBackSoon(t *testing.T) {
	t.Parallel()
	w := threeNodes(t, nil)
	l := w.leader(2)
	l.put("k", "v")
	next := w.nodes[l.id%3+1]
	w.silent()
	w.transferFrom(l, next)
	c := l.start(l.putRequest("k", "w"))
	w.settle()
	wantCode(t, c.resp, kv.CodeNotLeader)
	if c.resp.RetryAfterMillis != retryMovingMillis || c.resp.MaybeApplied {
		t.Fatalf("answered %+v", c.resp)
	}
	w.drop = nil
	w.tick(30) // the transfer is given up, or comes to it
	w.leader(2).put("k", "x")
	if s := w.leader(2).table.replica(2).state.Load(); s.lead.heir != 0 {
		t.Fatalf("heir %d of a leader that writes", s.lead.heir)
	}
	w.check()
}

// A frame of requests: every one is answered, gets of several ranges read
// together, and what is wrong in one does not touch the others.
func TestFrameOfRequestsIsAnsweredOneByOne(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	n := w.nodes[1]
	for i := range 40 {
		n.put(fmt.Sprintf("k%02d", i), fmt.Sprint(i))
	}
	w.split(2, "k20")
	for _, lease := range []bool{false, true} {
		if w.lease = nil; lease {
			w.lease = leased
		}
		var calls []Call
		answers := map[uint64]*kv.Response{}
		add := func(req *kv.Request) {
			req.ID = uint64(len(calls) + 1)
			calls = append(calls, Call{req, func(r *kv.Response) {
				if answers[r.ID] != nil {
					t.Errorf("%d is answered twice", r.ID)
				}
				answers[r.ID] = r
			}})
		}
		for i := range 40 {
			add(&kv.Request{Verb: kv.VerbGet, Key: key(fmt.Sprintf("k%02d", i))})
		}
		add(&kv.Request{Verb: kv.VerbGet, Key: key("nothing")})
		add(&kv.Request{Verb: kv.VerbGet})
		add(n.putRequest("new", "1"))
		add(&kv.Request{Verb: kv.VerbGet, Key: key("k00"), Timestamp: 5})
		add(&kv.Request{Verb: kv.VerbGet, Key: key("k00"), Timestamp: hlc.MaxTimestamp})
		n.table.SubmitBatch(calls)
		if lease && len(answers) < 44 {
			t.Fatalf("%d are answered at once", len(answers))
		}
		w.settle()
		for i := range 40 {
			if v := string(answers[uint64(i+1)].Value); v != fmt.Sprint(i) {
				t.Fatalf("key %d has %q", i, v)
			}
		}
		for i, code := range []kv.Code{
			kv.CodeNotFound, kv.CodeInvalid, kv.CodeOK, kv.CodeNotFound, kv.CodeUnavailable,
		} {
			wantCode(t, answers[uint64(41+i)], code)
		}
	}
	w.check()
}

// slowClock shows that each look at it took long.
type slowClock struct {
	*world
	passed *time.Duration
}

func (c slowClock) Monotonic() time.Duration {
	*c.passed += inlineBudget/2 + 1
	return *c.passed
}

// Gets that read from a slow disk do not hold up the rest of their stream for
// longer than the budget.
func TestGetsBeyondTheBudgetLeaveTheirCaller(t *testing.T) {
	t.Parallel()
	var passed time.Duration
	w := newWorld(t, 1, nil)
	w.bootstrap()
	w.lease = leased
	n := w.nodes[1]
	n.table.cfg.Physical = slowClock{w, &passed}
	n.put("k", "v")
	answered := 0
	calls := make([]Call, 10*inlineCheck)
	for i := range calls {
		calls[i] = Call{&kv.Request{Verb: kv.VerbGet, Key: key("k")}, func(r *kv.Response) {
			if string(r.Value) == "v" {
				answered++
			}
		}}
	}
	n.table.SubmitBatch(calls)
	if answered != 2*inlineCheck {
		t.Fatalf("%d were answered at once", answered)
	}
	w.settle()
	if answered != len(calls) {
		t.Fatalf("%d were answered", answered)
	}
}

func TestTableCountsItsLeases(t *testing.T) {
	t.Parallel()
	w := oneNode(t, nil)
	w.lease = func(_ *node, r *Replica, _ ids.Term, _ hlc.Timestamp) multiraft.LeaseState {
		if r.id == 1 {
			return multiraft.LeaseShort
		}
		return multiraft.LeaseHeld
	}
	if held, led := w.nodes[1].table.WalkLeases(); held != 1 || led != 2 {
		t.Fatalf("%d of %d", held, led)
	}
}
