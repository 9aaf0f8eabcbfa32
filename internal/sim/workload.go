package sim

import (
	"fmt"
	"strconv"
	"time"

	"github.com/flotilla-kv/flotilla/client/core"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// The workload's shape.
const (
	callTimeout   = 6 * time.Second
	registerKeys  = 8
	registerEpoch = 8 * time.Second // then other keys, so that histories stay short
	pairs         = 6
	counters      = 3
)

// worker is one client's endless loop of operations.
type worker struct {
	c    *client
	s    *Sim
	seq  int
	open bool
	// insertsTried and insertsDone are the numbers of the set workload.
	insertsTried int
	insertsDone  map[int]bool
}

func userKey(format string, args ...any) []byte {
	return append([]byte{kv.UserPrefix}, fmt.Sprintf(format, args...)...)
}

// next starts the worker's next operation after a little thought.
func (w *worker) next() {
	w.open = false
	if w.s.quiet {
		return
	}
	w.s.loop.after(between(w.s.workload, 0, w.s.options.Think), w.operate)
}

func (w *worker) operate() {
	if w.s.quiet {
		return
	}
	w.open = true
	w.seq++
	switch p := w.s.workload.IntN(100); {
	case p < 22:
		w.read()
	case p < 40:
		w.write(false)
	case p < 45:
		w.write(true)
	case p < 60:
		w.swap()
	case p < 68:
		w.scanRegisters()
	case p < 76:
		w.writePair()
	case p < 84:
		w.scanPairs()
	case p < 90:
		w.increment()
	default:
		w.insert()
	}
}

// call runs one request; done is told the response and when the call began.
func (w *worker) call(r kv.Request, done func(r *kv.Response, start time.Duration)) {
	start := w.s.loop.now
	w.c.start(&core.Call{
		Request: r, Deadline: start + callTimeout,
		Done: func(r *kv.Response) {
			w.s.loop.tracef("client %d: %s -> %s", w.c.id, r.Code, string(r.Value))
			w.s.count("calls_" + r.Code.String())
			done(r, start)
		},
	})
}

func (w *worker) registerKey() (string, []byte) {
	epoch := int(w.s.loop.now / registerEpoch)
	for try := 0; ; try++ {
		i := w.s.workload.IntN(registerKeys)
		name := fmt.Sprintf("k/%x/%d.%d", i*2, epoch, try/10)
		if !w.s.history.full(name) {
			return name, userKey("%s", name)
		}
	}
}

func (w *worker) read() {
	name, key := w.registerKey()
	request := kv.Request{Verb: kv.VerbGet, Key: key}
	if chance(w.s.workload, 0.15) {
		w.s.count("reads_in_the_future")
		request.Timestamp = w.s.checker.lease.future(between(w.s.workload, 0, futureReads))
	}
	w.call(request, func(r *kv.Response, start time.Duration) {
		out := registerOutput{value: string(r.Value)}
		out.unknown = r.Code != kv.CodeOK && r.Code != kv.CodeNotFound
		w.s.history.add(w.c.id, name, registerInput{kind: opRead}, out, start, w.s.loop.now)
		w.next()
	})
}

// outcome sorts a write's response: whether it is known, and whether it was applied.
func outcome(r *kv.Response) (applied, unknown bool) {
	switch r.Code {
	case kv.CodeOK:
		return true, false
	case kv.CodeUnknownOutcome:
		return false, true
	default:
		return false, false
	}
}

func (w *worker) value() string {
	return "c" + strconv.Itoa(w.c.id) + "-" + strconv.Itoa(w.seq)
}

func (w *worker) write(remove bool) {
	name, key := w.registerKey()
	request := kv.Request{Verb: kv.VerbPut, Key: key, Value: []byte(w.value())}
	in := registerInput{kind: opWrite, new: w.value()}
	if remove {
		request = kv.Request{Verb: kv.VerbDelete, Key: key}
		in = registerInput{kind: opDelete}
	}
	w.call(request, func(r *kv.Response, start time.Duration) {
		if applied, unknown := outcome(r); applied || unknown {
			w.s.history.add(w.c.id, name, in, registerOutput{unknown: unknown}, start, w.s.loop.now)
		}
		w.next()
	})
}

// swap reads, then swaps what it read.
func (w *worker) swap() {
	name, key := w.registerKey()
	w.call(kv.Request{Verb: kv.VerbGet, Key: key}, func(r *kv.Response, start time.Duration) {
		if r.Code != kv.CodeOK && r.Code != kv.CodeNotFound {
			w.next()
			return
		}
		old := string(r.Value)
		w.s.history.add(w.c.id, name, registerInput{kind: opRead},
			registerOutput{value: old}, start, w.s.loop.now)
		w.swapFrom(name, key, old)
	})
}

func (w *worker) swapFrom(name string, key []byte, old string) {
	request := kv.Request{
		Verb: kv.VerbCompareAndSwap, Key: key, Value: []byte(w.value()),
		Expect: kv.ExpectValue, Expected: []byte(old),
	}
	if old == "" {
		request.Expect = kv.ExpectAbsent
	}
	in := registerInput{kind: opCAS, old: old, new: w.value()}
	w.call(request, func(r *kv.Response, start time.Duration) {
		applied, unknown := outcome(r)
		if applied || unknown || r.Code == kv.CodeConflict {
			out := registerOutput{ok: applied, unknown: unknown, value: string(r.Value)}
			w.s.history.add(w.c.id, name, in, out, start, w.s.loop.now)
		}
		w.next()
	})
}

// increment adds one to a counter by compare-and-swap until it succeeds or its
// outcome is unknown.
func (w *worker) increment() {
	i := w.s.workload.IntN(counters)
	key := userKey("n/%d", i)
	w.call(kv.Request{Verb: kv.VerbGet, Key: key}, func(r *kv.Response, _ time.Duration) {
		if r.Code != kv.CodeOK && r.Code != kv.CodeNotFound {
			w.next()
			return
		}
		old, _ := strconv.Atoi(string(r.Value))
		request := kv.Request{
			Verb: kv.VerbCompareAndSwap, Key: key, Value: []byte(strconv.Itoa(old + 1)),
			Expect: kv.ExpectVersion, ExpectedVersion: r.Timestamp,
		}
		if r.Code == kv.CodeNotFound {
			request.Expect = kv.ExpectAbsent
		}
		w.call(request, func(r *kv.Response, _ time.Duration) {
			switch applied, unknown := outcome(r); {
			case applied:
				w.s.counted[i].sure++
			case unknown:
				w.s.counted[i].unknown++
			}
			w.next()
		})
	})
}

// writePair writes two neighbouring keys in one atomic batch.
func (w *worker) writePair() {
	i := w.s.workload.IntN(pairs)
	v := []byte(w.value())
	w.call(kv.Request{Verb: kv.VerbAtomic, Key: userKey("p/%d/a", i), Ops: []kv.Op{
		{Key: userKey("p/%d/a", i), Value: v}, {Key: userKey("p/%d/b", i), Value: v},
	}}, func(r *kv.Response, _ time.Duration) {
		if r.Code == kv.CodeOK {
			w.s.count("atomic_batches")
		}
		w.next()
	})
}

// insert adds a unique record with a bulky value (the set workload).
func (w *worker) insert() {
	i := w.insertsTried
	w.insertsTried++
	value := make([]byte, w.s.workload.IntN(w.s.options.BulkBytes)+1)
	for j := range value {
		value[j] = byte(w.s.workload.Uint32())
	}
	request := kv.Request{Verb: kv.VerbPut, Key: insertKey(w.c.id, i), Value: value}
	w.call(request, func(r *kv.Response, _ time.Duration) {
		if applied, _ := outcome(r); applied {
			w.insertsDone[i] = true
		}
		w.next()
	})
}

// insertKey spreads a client's inserts over the keyspace.
func insertKey(client, i int) []byte {
	return userKey("s/%02x/%d/%d", (i*37+client*11)%256, client, i)
}
