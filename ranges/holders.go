package ranges

import "github.com/flotilla-kv/flotilla/internal/ids"

// HoldsLease says whether this node holds the lease of range id now, and in
// which term. Any goroutine. For the simulator's checks.
func (t *Table) HoldsLease(id ids.RangeID) (ids.Term, bool) {
	r := t.replica(id)
	if r == nil {
		return 0, false
	}
	s := r.state.Load()
	return s.lead.term, s.lead.mine && !s.destroyed && r.holdsLease(s.lead.term, 0)
}

// EachLease calls f for each range whose lease this node holds now, in order of
// their ids. Any goroutine. For the simulator's checks.
func (t *Table) EachLease(f func(id ids.RangeID, term ids.Term)) {
	for _, r := range t.all() {
		if term, ok := t.HoldsLease(r.id); ok {
			f(r.id, term)
		}
	}
}

// WalkLeases returns how many ranges are led here, and for how many of them reads need
// no quorum now, by asking each. For tests and the simulator; Leases is for the rest.
func (t *Table) WalkLeases() (held, led int) {
	for _, r := range t.all() {
		s := r.state.Load()
		if !s.leads() {
			continue
		}
		led++
		if r.holdsLease(s.lead.term, 0) {
			held++
		}
	}
	return held, led
}
