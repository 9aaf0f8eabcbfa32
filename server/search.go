package server

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A node that finds no driver looks for the others. What it knows of them may be old:
// while it was down they may have moved to other addresses, the system range to other
// nodes, and it may have been decommissioned. It asks the addresses of --join and, if
// that has not helped for a while, those of all nodes that it knows of. Whoever lives
// at one of them names the driver with its address.

// Pace and bounds of the search.
const (
	// searchEvery is how often others are asked while no driver answers.
	searchEvery = 2 * time.Second
	// membersAfter is how long no driver may have answered before members are asked
	// who cannot drive: in a cluster whose driver is lost, every node would ask all.
	membersAfter = 3 * time.Second
	// maxMembersAsked bounds the members asked in one round; they take turns.
	maxMembersAsked = 8
)

// search is how far the search has come. The reporter's goroutine.
type search struct {
	heard time.Time // from a driver
	asked time.Time
	next  ids.NodeID // whose turn it is, of the members
}

// addresses returns who is to be asked in this round.
func (s *search) addresses(
	join []string, members []*metapb.NodeDescriptor, self ids.NodeID, now time.Time,
) []string {
	addrs := append([]string(nil), join...)
	if now.Sub(s.heard) < membersAfter {
		return addrs
	}
	first := 0
	for i, m := range members {
		if ids.NodeID(m.GetNodeId()) < s.next {
			first = i + 1
		}
	}
	for i := range min(len(members), maxMembersAsked) {
		m := members[(first+i)%len(members)]
		if id := ids.NodeID(m.GetNodeId()); id != self && m.GetAddress() != "" {
			addrs = append(addrs, m.GetAddress())
		}
		s.next = ids.NodeID(m.GetNodeId()) + 1
	}
	return addrs
}

// lookForOthers asks them all at once, and hears what the first have to say that know
// something: who the others are, or that this node is out.
func (r *reporter) lookForOthers(ctx context.Context) {
	n, now := r.n, time.Now()
	if now.Sub(r.search.asked) < searchEvery {
		return
	}
	r.search.asked = now
	addrs := r.search.addresses(n.cfg.Join, n.registry.list(), n.self, now)
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	rounds, errs := make([]askRound, len(addrs)), make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() {
			rounds[i], errs[i] = n.s.askThese(ctx, []string{addr})
			if rounds[i].gone || rounds[i].reply != nil {
				cancel() // one is enough
			}
		})
	}
	wg.Wait()
	r.learnFrom(addrs, rounds, errs)
}

// learnFrom takes what a search has brought. That this node is out comes first: it is
// true whatever others say.
func (r *reporter) learnFrom(addrs []string, rounds []askRound, errs []error) {
	n := r.n
	if slices.ContainsFunc(rounds, func(a askRound) bool { return a.gone }) {
		n.heardStanding(metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED.Enum())
		return
	}
	for i, round := range rounds {
		switch err := errs[i]; {
		case round.reply != nil:
			n.learn(round.reply.GetNodes(), round.reply.GetSystemRange())
			return
		case err != nil && !errors.Is(err, context.Canceled) &&
			!errors.Is(err, context.DeadlineExceeded):
			n.cfg.Logger.Warn("refused by another node", "address", addrs[i], "error", err)
		}
	}
}
