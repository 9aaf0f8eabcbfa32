package sim

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// rested says that nothing is under way: no call, every replica of every range
// that is led has applied what its leader has.
func (s *Sim) rested() bool {
	for _, w := range s.workers {
		if w.open {
			return false
		}
	}
	return s.settled()
}

func (s *Sim) settled() bool {
	if s.loop.now < s.restAt {
		return false
	}
	s.restAt = s.loop.now + 500*time.Millisecond
	return s.unsettled() == nil
}

// unsettled says what is not as it should be at rest: copies differ, or are not
// where they belong, or placement is still at it.
func (s *Sim) unsettled() error {
	for _, n := range s.machines {
		if !n.alive || n.table == nil {
			return fmt.Errorf("%s does not serve", n)
		}
	}
	if err := s.checker.tiling(); err != nil {
		return err
	}
	s.tiledAt = s.loop.now
	return s.unplaced()
}

// finish reads everything back and holds it against what was promised.
func (s *Sim) finish() {
	var rows []kv.KeyValue
	var final *kv.Response
	s.clients[0].scan([]byte{kv.UserPrefix}, userEnd(), s.loop.now+30*time.Second,
		func(r []kv.KeyValue, last *kv.Response) { rows, final = r, last })
	if !s.until(s.loop.now+40*time.Second, func() bool { return final != nil }) {
		s.fail("the final scan did not end")
		return
	}
	if final.Code != kv.CodeOK {
		s.fail("the final scan ended with %s: %s", final.Code, final.Message)
		return
	}
	// Followers learn of the last commit only now.
	if !s.until(s.loop.now+20*time.Second, s.settled) {
		s.fail("replicas do not agree after the final scan: %v", s.unsettled())
		return
	}
	s.checker.states()
	if !s.fallSilent() {
		return
	}
	s.checker.recountAll()
	for _, check := range []func() error{
		s.history.check,
		func() error { return s.checkInserts(rows) },
		func() error { return s.checkCounters(rows) },
		s.checkVersions,
	} {
		if err := check(); err != nil {
			s.fail("%v", err)
		}
	}
}

// checkInserts: every acknowledged insert is there, nothing that nobody tried.
func (s *Sim) checkInserts(rows []kv.KeyValue) error {
	there := map[string]bool{}
	for _, row := range rows {
		if bytes.HasPrefix(row.Key, userKey("s/")) {
			there[string(row.Key)] = true
		}
	}
	known := map[string]bool{}
	for _, w := range s.workers {
		for i := range w.insertsTried {
			key := string(insertKey(w.c.id, i))
			known[key] = true
			if w.insertsDone[i] && !there[key] {
				return fmt.Errorf("acknowledged insert %q is lost", key)
			}
		}
	}
	for key := range there {
		if !known[key] {
			return fmt.Errorf("%q was never inserted", key)
		}
	}
	s.counters["inserts_found"] += len(there)
	return nil
}

// checkCounters: each is the number of acknowledged increments, plus at most
// the unknown ones.
func (s *Sim) checkCounters(rows []kv.KeyValue) error {
	values := map[string]int{}
	for _, row := range rows {
		if bytes.HasPrefix(row.Key, userKey("n/")) {
			values[string(row.Key)], _ = strconv.Atoi(string(row.Value))
		}
	}
	for i, c := range s.counted {
		v := values[string(userKey("n/%d", i))]
		if v < c.sure || v > c.sure+c.unknown {
			return fmt.Errorf("counter %d is %d after %d increments and %d of unknown outcome",
				i, v, c.sure, c.unknown)
		}
		s.counters["increments"] += c.sure
	}
	return nil
}

// checkVersions: an insert, retried or not, has exactly one version.
func (s *Sim) checkVersions() error {
	for _, n := range s.machines {
		it, err := n.store.State().DB().NewIter(nil)
		if err != nil {
			return err
		}
		var last []byte
		start := mvcc.AppendKey(nil, userKey("s/"), hlc.MaxTimestamp)
		for ok := it.SeekGE(start); ok; ok = it.Next() {
			key, _, versioned := mvcc.DecodeKey(it.Key())
			if !versioned || !bytes.HasPrefix(key, userKey("s/")) {
				break
			}
			if bytes.Equal(key, last) {
				_ = it.Close()
				return fmt.Errorf("%s stores two versions of %q, inserted once", n.id, key)
			}
			last = append(last[:0], key...)
		}
		if err := it.Close(); err != nil {
			return err
		}
	}
	return nil
}
