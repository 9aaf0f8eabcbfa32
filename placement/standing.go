package placement

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Short names of the standings. They are ordered: each later one wants more.
const (
	standingActive          = metapb.NodeStanding_NODE_STANDING_ACTIVE
	standingDraining        = metapb.NodeStanding_NODE_STANDING_DRAINING
	standingDecommissioning = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONING
	standingDecommissioned  = metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED
)

// ErrRefused says that what a person asked for would do harm or cannot be done;
// the words after it say why. Nothing was changed.
var ErrRefused = errors.New("refused")

// leaving is how far a node has come in giving away what it has.
type leaving struct {
	since    time.Duration // its standing changed, or this driver learned of it
	leaders  int           // the most that this driver has seen there since
	replicas int
	bytes    int64
}

// setStanding notes what people want of a node, and has everything looked at that
// depends on it.
func (c *cluster) setStanding(n *node, to metapb.NodeStanding, version hlc.Timestamp) {
	if version < n.stood {
		return // a read that was overtaken
	}
	n.stood = version
	c.registryVersion = max(c.registryVersion, version)
	if n.standing == to {
		return
	}
	wasGone := n.gone()
	n.standing = to
	if n.desc != nil && wasGone != n.gone() {
		if wasGone {
			c.registered++
		} else {
			c.registered--
		}
	}
	n.leaving = leaving{since: c.now}
	i, listed := slices.BinarySearch(c.leaving, n.id)
	wants := to == standingDraining || to == standingDecommissioning
	switch {
	case wants && !listed:
		c.leaving = slices.Insert(c.leaving, i, n.id)
	case !wants && listed:
		c.leaving = slices.Delete(c.leaving, i, i+1)
	}
	c.observeLeaving(n)
	c.topology++
	c.rephase(n)
	c.reviewOf(n)
	c.usable()
}

// observeLeaving keeps the most that a leaving node had to give.
func (c *cluster) observeLeaving(n *node) {
	l := &n.leaving
	l.leaders, l.replicas = max(l.leaders, n.leads.Len()), max(l.replicas, n.holds.Len())
	l.bytes = max(l.bytes, n.load.bytes)
}

// mayLeave says in words why a node must not be drained or decommissioned, nil if
// nothing stands against it.
func (c *cluster) mayLeave(n *node, to metapb.NodeStanding) error {
	others := 0
	for _, id := range c.order {
		o := c.nodes[id]
		if o != n && o.desc != nil && o.standing == standingActive && o.phase >= phaseLive {
			others++
		}
	}
	if others == 0 && n.standing == standingActive {
		return fmt.Errorf("%w: %v is the last node that may lead ranges: add another one, or "+
			"undrain one, first", ErrRefused, n.id)
	}
	if to >= standingDecommissioning && n.standing < standingDecommissioning {
		if err := c.roomWithout(n); err != nil {
			return err
		}
	}
	return c.quorumsWithout(n)
}

// roomWithout refuses if the rules could not be kept as well as now without n.
func (c *cluster) roomWithout(n *node) error {
	for _, r := range c.ruleSet.Rules() {
		u := c.current(c.rulings[r])
		if !u.Allows(n.labels) {
			continue
		}
		// A dead node counts for what it will hold when it is back, not more.
		left := c.fitting(u.Rule, n)
		if left >= 1 && oddFloor(min(u.Replicas, left)) >= u.goal() {
			continue
		}
		return fmt.Errorf("%w: rule %s keeps %d copies of each range on different nodes, and "+
			"without %v only %d would be left for them: add a node first", ErrRefused, u.Name,
			u.goal(), n.id, left)
	}
	return nil
}

// quorumsWithout refuses if ranges that n holds would stop without it since their
// other copies are away now. What has no other copies is moved first: that is no
// reason.
func (c *cluster) quorumsWithout(n *node) error {
	count, example := 0, ids.RangeID(0)
	n.holds.Scan(func(id ids.RangeID) bool {
		r := c.dir.byID[id]
		voters, live, votes := 0, 0, false
		for _, p := range r.desc.GetReplicas() {
			if p.GetRole() == roleLearner {
				continue
			}
			voters++
			switch o := c.nodes[ids.NodeID(p.GetNodeId())]; {
			case o == n:
				votes = true
			case o.phase >= phaseLive:
				live++
			}
		}
		if votes && live < voters-1 && live < voters/2+1 {
			if count++; count == 1 {
				example = id
			}
		}
		return true
	})
	if count == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s would have no live majority without %v, for other nodes are silent: "+
		"bring those back first", ErrRefused, plural(count, "range", example), n.id)
}

// plural says how many ranges, with one as an example.
func plural(count int, noun string, example ids.RangeID) string {
	switch count {
	case 1:
		return fmt.Sprintf("1 %s (%v)", noun, example)
	default:
		return fmt.Sprintf("%d %ss (such as %v)", count, noun, example)
	}
}

// SetStanding drains, undrains (ACTIVE) or decommissions a node. Refused with an
// error that wraps ErrRefused and says why if quorums or copies would be lost: the
// last node, fewer nodes left than copies are wanted, an unknown node (it wraps
// ErrUnknownNode, too), a node that is decommissioned already. Stored in range 1 by
// compare-and-swap. Asking again for what is so already is harmless. done is called
// once, possibly before SetStanding returns; ErrAskAgain if not now.
func (d *Driver) SetStanding(
	id ids.NodeID, want metapb.NodeStanding, done func(*adminpb.NodeProgress, error),
) {
	if err := d.standingRefusal(id, want); err != nil {
		done(nil, err)
		return
	}
	n := d.cluster.nodes[id]
	if n.standing == want {
		done(d.progress(n), nil)
		return
	}
	d.log.Info("standing of a node changes", "node", uint64(id), "op", standingWords(want))
	d.storeStanding(id, want, func(err error) {
		if err != nil {
			done(nil, err)
			return
		}
		d.relieve(n)
		done(d.progress(n), nil)
	})
}

// standingRefusal says why a change of standing is not even begun.
func (d *Driver) standingRefusal(id ids.NodeID, want metapb.NodeStanding) error {
	c := d.cluster
	n := c.nodes[id]
	switch {
	case !d.Active():
		return fmt.Errorf("%w: this node does not drive placement", ErrAskAgain)
	case !d.planning:
		return fmt.Errorf("%w: not all nodes have told yet what they hold", ErrAskAgain)
	case d.standingOpen:
		// One at a time: two that are harmless alone may do harm together.
		return fmt.Errorf("%w: the standing of another node is being changed", ErrAskAgain)
	case n == nil || n.desc == nil:
		return fmt.Errorf("%w: %w: %v", ErrRefused, ErrUnknownNode, id)
	case want == n.standing:
		return nil
	case n.gone():
		return fmt.Errorf("%w: %v is decommissioned for good: start it with an empty directory "+
			"to add it as a new node", ErrRefused, id)
	case want >= standingDecommissioned || want < standingActive:
		return fmt.Errorf("%w: a node becomes decommissioned by itself when nothing is left "+
			"on it: ask for decommissioning", ErrRefused)
	case want == standingActive:
		return nil
	}
	return c.mayLeave(n, want)
}

// storeStanding writes the standing of a node into range 1.
func (d *Driver) storeStanding(id ids.NodeID, want metapb.NodeStanding, done func(error)) {
	d.standingOpen = true
	key := standingKey(id)
	d.edits.start(&edit{
		key: key,
		decide: func(old []byte, version hlc.Timestamp) ([]byte, bool, error) {
			known, err := decodeStanding(key, old, version)
			if err != nil {
				return nil, false, err
			}
			if known == standingDecommissioned && want != known {
				return nil, false, fmt.Errorf("%w: %v is decommissioned", ErrRefused, id)
			}
			if want == standingDecommissioned && known != want && known != standingDecommissioning {
				// Another driver took it back, of which this one has not heard.
				return nil, false, fmt.Errorf("%w: %v is not being decommissioned", ErrRefused, id)
			}
			return encodeNumber(uint64(want)), known != want, nil
		},
		done: func(value []byte, version hlc.Timestamp, err error) {
			d.standingOpen = false
			var now metapb.NodeStanding
			if err == nil {
				now, err = decodeStanding(key, value, version)
			}
			if err == nil {
				d.cluster.setStanding(d.cluster.node(id), now, version)
			}
			done(err)
		},
	})
}

func decodeStanding(key, value []byte, version hlc.Timestamp) (metapb.NodeStanding, error) {
	if version == 0 {
		return standingActive, nil
	}
	number, err := decodeNumber(key, value)
	if err == nil && number > math.MaxInt32 {
		err = fmt.Errorf("read %q in range 1: no standing has the number %d", key, number)
	}
	return metapb.NodeStanding(number), err
}

// relieve ends operators that a change of n has made pointless: copies are not
// taken from a node that may keep them, and none go to a node that leaves.
func (d *Driver) relieve(n *node) {
	c := d.cluster
	var idle []*operator
	c.ops.Scan(func(_ uint64, op *operator) bool {
		if op.at >= len(op.steps) {
			return true
		}
		s := op.steps[op.at]
		kept := op.blame == n.id && n.phase > phaseDead && n.standing < standingDecommissioning &&
			s.kind == addLearner
		unwanted := s.node == n.id && (s.kind == addLearner || s.kind == catchUp) && n.sheds()
		if kept || unwanted {
			idle = append(idle, op)
		}
		return true
	})
	for _, op := range idle {
		why := fmt.Sprintf("%v is back", n.id)
		switch {
		case n.sheds():
			why = fmt.Sprintf("%v is %s", n.id, standingWords(n.standing))
		case op.kind == kindDecommission:
			why = fmt.Sprintf("%v is not decommissioned any more", n.id)
		}
		d.end(op, cancelled, why)
	}
}

// depart looks after the nodes that leave: keeps what they had at most, and calls
// those decommissioned that hold nothing any more.
func (d *Driver) depart() {
	c := d.cluster
	for _, id := range c.leaving {
		n := c.nodes[id]
		c.observeLeaving(n)
		// With a gap in the directory nobody knows what else the node holds.
		if n.standing != standingDecommissioning || n.holds.Len() > 0 || n.leads.Len() > 0 ||
			d.standingOpen || c.dir.gaps() > 0 || c.expected(id) {
			continue
		}
		d.storeStanding(id, standingDecommissioned, func(err error) {
			if err != nil {
				d.log.Warn("decommissioned node not noted", "node", uint64(id), "error", err)
				return
			}
			d.log.Info("node is decommissioned", "node", uint64(id))
		})
		return // c.leaving may have changed
	}
}

// expected says whether an operator that runs still brings a copy to a node.
func (c *cluster) expected(id ids.NodeID) (yes bool) {
	c.ops.Scan(func(_ uint64, op *operator) bool {
		yes = slices.ContainsFunc(op.steps, func(s step) bool {
			return s.kind == addLearner && s.node == id
		})
		return !yes
	})
	return yes
}

// standingWords names a standing for people.
func standingWords(s metapb.NodeStanding) string {
	switch s {
	case standingActive:
		return "active"
	case standingDraining:
		return "draining"
	case standingDecommissioning:
		return "being decommissioned"
	default:
		return "decommissioned"
	}
}
