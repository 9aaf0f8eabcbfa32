package sim

import (
	"cmp"
	"slices"
	"time"
)

// Agreement on the time, as package server has it in clockcheck.go, with frames
// of this network. A node that starts asks the others before it makes its hybrid
// clock.
const (
	askTimeEvery = 100 * time.Millisecond // of one that has not answered
	bootPatience = 3 * time.Second
	lookEvery    = time.Second // of a node that nobody has agreed with yet
)

// timeVote is what a node takes for the time: its distance from the asker's
// smoothed clock. settled: it runs, and others have agreed to it.
type timeVote struct {
	offset  time.Duration
	settled bool
}

// vote is what this node says when it is asked.
func (n *node) vote() (wall int64, settled bool) {
	if n.settled {
		return n.physical.Wall(), true
	}
	real := n.physical.real()
	if bound := n.store.Identity().Record().Bound.Wall(); bound-real > maxAhead.Milliseconds() {
		real = bound - boundWindow.Milliseconds()
	}
	return real, false
}

// timePoll collects the votes of all other members; heard is called after each.
type timePoll struct {
	n       *node
	members []*node
	answers map[*node]timeVote
	heard   func()
	over    bool
}

func (n *node) askTime(heard func()) *timePoll {
	p := &timePoll{n: n, members: n.sim.members(n), answers: map[*node]timeVote{}, heard: heard}
	for _, m := range p.members {
		p.ask(m)
	}
	return p
}

func (p *timePoll) ask(m *node) {
	n := p.n
	if _, ok := p.answers[m]; ok || p.over {
		return
	}
	began := n.physical.Monotonic()
	n.sim.net.call(n, m, func(reply func(func())) {
		theirs, settled := m.vote()
		reply(func() {
			if p.over {
				return
			}
			half := (n.physical.Monotonic() - began).Milliseconds() / 2
			d := time.Duration(theirs+half-n.physical.Wall()) * time.Millisecond
			p.answers[m] = timeVote{d, settled}
			p.heard()
		})
	})
	n.after(askTimeEvery, func() { p.ask(m) })
}

// judge decides what the time is; late: nothing more is waited for.
func (p *timePoll) judge(late bool) (offset time.Duration, settled, done bool) {
	wall, _ := p.n.vote()
	all := []timeVote{{offset: time.Duration(wall-p.n.physical.Wall()) * time.Millisecond}}
	var running []timeVote
	for _, m := range p.members {
		if v, ok := p.answers[m]; ok {
			all = append(all, v)
			if v.settled {
				running = append(running, v)
			}
		}
	}
	nodes := len(p.members) + 1
	median, size := largestGroup(all)
	switch {
	case size*2 > nodes:
		return median, true, true
	case !late && len(all) < nodes:
		return 0, false, false
	case len(running) > 0:
		median, _ = largestGroup(running)
		return median, true, true
	case len(all) > 1:
		return median, true, true
	}
	return 0, false, true
}

// largestGroup returns the median and the size of the largest set of votes that
// agree; of several the earliest.
func largestGroup(votes []timeVote) (median time.Duration, size int) {
	slices.SortFunc(votes, func(a, b timeVote) int { return cmp.Compare(a.offset, b.offset) })
	for first, last := 0, 0; first < len(votes); first++ {
		for last < len(votes) && votes[last].offset-votes[first].offset <= maxSlew {
			last++
		}
		if last-first > size {
			size = last - first
			median = votes[first+(size-1)/2].offset
		}
	}
	return median, size
}

// agree finds the time before the node has a hybrid clock, then goes on.
func (n *node) agree(then func()) {
	if len(n.sim.members(n)) == 0 {
		n.settled = true
		then()
		return
	}
	var p *timePoll
	decide := func(late bool) {
		offset, settled, done := p.judge(late)
		if p.over || !done {
			return
		}
		p.over = true
		if !settled { // nobody answered: no further than the record reaches
			wall, _ := n.vote()
			wall = min(wall, n.store.Identity().Record().Bound.Wall())
			offset = time.Duration(wall-n.physical.Wall()) * time.Millisecond
			n.sim.count("clocks_of_their_own")
		}
		n.takeOver(offset)
		n.settled = settled
		then()
		n.lookForTime()
	}
	p = n.askTime(func() { decide(false) })
	n.after(bootPatience, func() { decide(true) })
}

// lookForTime asks on until somebody has agreed.
func (n *node) lookForTime() {
	if n.settled {
		return
	}
	p := n.askTime(func() {})
	n.after(lookEvery, func() {
		p.over = true
		if offset, settled, _ := p.judge(true); settled {
			n.takeOver(offset)
			n.settled = true
		}
		n.lookForTime()
	})
}

// takeOver moves the smoothed clock, if that is worth it.
func (n *node) takeOver(offset time.Duration) {
	if offset.Abs() > maxSlew {
		n.sim.count("clocks_adopted")
		n.sim.loop.tracef("%s moves its clock by %s, as its peers say", n, offset)
		n.physical.adopt(offset)
	}
}

// members are the machines, other than n, that have joined.
func (s *Sim) members(n *node) (all []*node) {
	for _, m := range s.machines {
		if m != n && m.id < provisional {
			all = append(all, m)
		}
	}
	return all
}
