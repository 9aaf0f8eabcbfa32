package sim

import (
	"bytes"
	"time"

	"github.com/flotilla-kv/flotilla/client/core"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// scan reads [start, end) at one instant, page after page; done gets the rows
// and the last response.
func (c *client) scan(
	start, end []byte, deadline time.Duration, done func(rows []kv.KeyValue, last *kv.Response),
) {
	var rows []kv.KeyValue
	var page func(from []byte, at hlc.Timestamp)
	page = func(from []byte, at hlc.Timestamp) {
		c.start(&core.Call{
			Request:  kv.Request{Verb: kv.VerbScan, Key: from, End: end, Timestamp: at},
			Deadline: deadline,
			Done: func(r *kv.Response) {
				rows = append(rows, r.Rows...)
				if r.Code == kv.CodeOK && r.More {
					c.sim.count("scan_pages")
					page(r.ResumeKey, r.Timestamp)
					return
				}
				done(rows, r)
			},
		})
	}
	page(start, 0)
}

// scan is a worker's scan; ok is false when it failed.
func (w *worker) scan(
	start, end []byte, done func(rows []kv.KeyValue, ok bool, began time.Duration),
) {
	began := w.s.loop.now
	w.c.scan(start, end, began+callTimeout, func(rows []kv.KeyValue, last *kv.Response) {
		w.s.count("scans_" + last.Code.String())
		done(rows, last.Code == kv.CodeOK, began)
	})
}

// scanRegisters reads all registers at one instant; to each one it is a read.
func (w *worker) scanRegisters() {
	epoch := int(w.s.loop.now / registerEpoch)
	w.scan(userKey("k/"), userKey("k0"), func(rows []kv.KeyValue, ok bool, began time.Duration) {
		if ok {
			w.noteRegisters(epoch, rows, began)
		}
		w.next()
	})
}

func (w *worker) noteRegisters(epoch int, rows []kv.KeyValue, began time.Duration) {
	seen := map[string]string{}
	for _, row := range rows {
		seen[string(row.Key[1:])] = string(row.Value)
	}
	for i := range registerKeys {
		name := string(userKey("k/%x/%d.0", i*2, epoch)[1:])
		if !w.s.history.full(name) {
			w.s.history.add(w.c.id, name, registerInput{kind: opRead},
				registerOutput{value: seen[name]}, began, w.s.loop.now)
		}
	}
	w.s.count("scans_of_registers")
}

// scanPairs reads all pairs at one instant: both halves of a pair are equal.
func (w *worker) scanPairs() {
	w.scan(userKey("p/"), userKey("p0"), func(rows []kv.KeyValue, ok bool, _ time.Duration) {
		if ok {
			w.checkPairs(rows)
		}
		w.next()
	})
}

func (w *worker) checkPairs(rows []kv.KeyValue) {
	w.s.count("scans_of_pairs")
	half := map[string][]byte{}
	for _, row := range rows {
		name := string(row.Key[:len(row.Key)-1])
		if row.Key[len(row.Key)-1] == 'a' {
			half[name] = row.Value
			continue
		}
		if !bytes.Equal(half[name], row.Value) {
			w.s.fail("scan of client %d saw half a pair: %q has %q and %q",
				w.c.id, name, half[name], row.Value)
		}
		delete(half, name)
	}
	for name, v := range half {
		w.s.fail("scan of client %d saw half a pair: %q has %q and nothing", w.c.id, name, v)
	}
}
