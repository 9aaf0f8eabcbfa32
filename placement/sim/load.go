package sim

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"time"
)

// How ranges measure and what they make of it, as package ranges does.
const (
	decayOver     = 10 * time.Second
	splitCPU      = 100_000 // microseconds per second above which a range is hot
	splitOps      = 2500    // operations per second
	hotFor        = 5 * time.Second
	splitPause    = 10 * time.Second // between two splits of a range by load
	worstHalf     = 0.625            // a split by load leaves no more than this on one side
	tellFloor     = 2_000            // microseconds per second that placement can miss
	tellFloorRate = float64(64 * kib)
	sizeStep      = 20 // the part of the size by which it must have moved to be told
)

// rates is the load of a range, per second.
type rates struct {
	reads, writes         float64
	cpu                   float64 // microseconds
	readBytes, writeBytes float64
}

func (r rates) plus(o rates) rates {
	return rates{r.reads + o.reads, r.writes + o.writes, r.cpu + o.cpu,
		r.readBytes + o.readBytes, r.writeBytes + o.writeBytes}
}

func (r rates) times(f float64) rates {
	return rates{r.reads * f, r.writes * f, r.cpu * f, r.readBytes * f, r.writeBytes * f}
}

func (r rates) some() bool { return r != rates{} }

// workload is what clients ask for, evenly over a span of positions.
type workload struct {
	name     string
	from, to position
	rates            // in all
	inserts  float64 // share of the written bytes that stays as growth
	noise    float64 // the rates of a range vary by so much from second to second

	wanted, served float64 // operations of the last second
}

// share is the part of a workload that falls to a range.
func (l *workload) share(r *simRange) float64 {
	from, to := max(l.from, r.from), min(l.to, r.to)
	if from >= to {
		return 0
	}
	return float64(to-from) / float64(l.to-l.from)
}

// setLoad begins a workload; the same name replaces it, rates of 0 end it.
func (w *World) setLoad(l *workload) {
	w.workloads = slices.DeleteFunc(w.workloads, func(o *workload) bool { return o.name == l.name })
	if l.some() {
		w.workloads = append(w.workloads, l)
	}
	w.byStart.Scan(func(_ string, r *simRange) bool {
		w.ask(r)
		return true
	})
}

// ask works out what clients ask of a range.
func (w *World) ask(r *simRange) {
	r.asked = rates{}
	for _, l := range w.workloads {
		if share := l.share(r); share > 0 {
			r.asked = r.asked.plus(l.rates.times(share))
		}
	}
	w.resume(r)
}

// maintain is the step that a second brings: load, growth, splits, facts.
func (w *World) maintain() {
	for _, n := range w.nodes {
		n.demand = 0
		w.tally.receiveRate = max(w.tally.receiveRate, n.received)
		n.received = 0
	}
	active := w.active.Keys()
	for _, id := range active {
		w.measure(w.ranges[id])
	}
	for _, n := range w.nodes {
		n.cpu = n.demand
	}
	for _, id := range active {
		if r := w.ranges[id]; r != nil {
			w.consider(r)
		}
	}
	for _, id := range w.learning.Keys() {
		if r := w.ranges[id]; r.learnersCaught() != r.toldCaught {
			w.tell(r)
		}
	}
	w.countServed()
}

// measure takes one second of load into a range's meter, and grows the range.
func (w *World) measure(r *simRange) {
	var now rates
	n := w.node(r.leader)
	if n != nil && r.asked.some() {
		for _, l := range w.workloads {
			if share := l.share(r); share > 0 {
				part := l.rates.times(share)
				if l.noise > 0 {
					part = part.times(max(0, 1+l.noise*(2*w.rng.Float64()-1)))
				}
				now = now.plus(part)
				if grown := part.writeBytes * l.inserts * n.served(); grown >= 1 {
					w.grow(r, int64(grown))
				}
			}
		}
		n.demand += now.cpu
		now = now.times(n.served())
	}
	keep := math.Exp(-maintainEvery.Seconds() / decayOver.Seconds())
	r.meter = r.meter.times(keep).plus(now.times(1 - keep))
	if !r.asked.some() && r.meter.cpu < 1 && r.meter.writes+r.meter.reads < 0.1 {
		r.meter = rates{}
	}
}

// consider splits a range that is too large or too hot, and tells what is new.
func (w *World) consider(r *simRange) {
	if r.leader == 0 {
		return
	}
	if r.bytes > w.cfg.RangeSize && r.bytes > r.noSplit {
		if err := w.split(r, nil); err != nil && r.change == nil {
			r.noSplit = r.bytes + r.bytes/10
		}
	}
	w.splitByLoad(r)
	moved := r.bytes - r.toldBytes
	if moved = max(moved, -moved); moved > 64*kib && moved*sizeStep > r.toldBytes ||
		moved > 0 && !r.asked.some() || w.newsOfLoad(r) {
		w.tell(r)
	}
	if !r.asked.some() && !r.meter.some() && !r.told.some() {
		w.active.Delete(r.id)
	}
}

// newsOfLoad says whether the load moved by more than a quarter, or fell to nothing.
func (w *World) newsOfLoad(r *simRange) bool {
	if r.told.some() != r.meter.some() {
		return true
	}
	far := func(now, told, floor float64) bool {
		return math.Abs(now-told) > max(floor, told/4)
	}
	return far(r.meter.cpu, r.told.cpu, tellFloor) ||
		far(r.meter.writeBytes, r.told.writeBytes, tellFloorRate) ||
		far(r.meter.readBytes, r.told.readBytes, tellFloorRate)
}

// splitByLoad splits a range that has been hot for a while where its load halves.
func (w *World) splitByLoad(r *simRange) {
	if r.meter.cpu < splitCPU && r.meter.reads+r.meter.writes < splitOps {
		r.hotSince, r.hotBecause = 0, ""
		return
	}
	if r.hotSince == 0 {
		r.hotSince = w.now
	}
	if w.now-r.hotSince < hotFor || w.now-r.lastSplit < splitPause && r.lastSplit > 0 {
		return
	}
	at, share := w.halving(r)
	key := w.keys.key(at)
	if share > worstHalf || bytes.Equal(key, r.desc.Start) {
		if because := fmt.Sprintf("one key gets %.0f %% of the load", 100*share); because != r.hotBecause {
			r.hotBecause = because
			w.tell(r)
		}
		return
	}
	if w.split(r, key) == nil {
		w.tally.loadSplits++
	}
}

// halving returns the position at which the load of r halves, and the share of the
// larger side.
func (w *World) halving(r *simRange) (position, float64) {
	below := func(at position) float64 {
		var sum, all float64
		part := simRange{from: r.from, to: at}
		for _, l := range w.workloads {
			weight := l.cpu + l.reads + l.writes
			all += weight * l.share(r)
			sum += weight * l.share(&part)
		}
		return sum / max(all, 1e-9)
	}
	low, high := r.from, r.to
	for low+1 < high {
		if middle := (low + high) / 2; below(middle) < 0.5 {
			low = middle
		} else {
			high = middle
		}
	}
	at := high
	if at >= r.to || math.Abs(below(low)-0.5) < math.Abs(below(high)-0.5) && low > r.from {
		at = low
	}
	return at, max(below(at), 1-below(at))
}

// countServed notes which part of every workload was served in this second.
func (w *World) countServed() {
	for _, l := range w.workloads {
		l.wanted, l.served = l.reads+l.writes, 0
		w.byStart.Scan(func(_ string, r *simRange) bool {
			if n := w.node(r.leader); n != nil {
				l.served += l.wanted * l.share(r) * n.served()
			}
			return true
		})
	}
}

func (r *simRange) learnersCaught() int {
	count := 0
	for _, p := range r.desc.GetReplicas() {
		if p.GetRole() == roleLearner && r.caught[p.GetReplicaId()] {
			count++
		}
	}
	return count
}
