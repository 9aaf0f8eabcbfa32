package placement

import "time"

// Copies travel as snapshots, and those compete with the work of users: the receiver
// pays with its disk, the sender with reading. So each node takes and gives only a
// few at a time. The tokens are derived from the operators that run (pending), not
// kept: an operator that ends, however it ends, gives back what it took.
const (
	// receiveLimit is how many snapshots a node may be receiving for the sake of
	// balance, sendLimit how many it may be sending.
	receiveLimit = 2
	sendLimit    = 2
	// repairReserve is how many more of each are allowed for what cannot wait, so
	// that balancing never starves repair.
	repairReserve = 1
	// receiveBytes bounds the bytes under way to a node; a single snapshot may be
	// larger.
	receiveBytes = 256 << 20
	// shunFor is how long balancing leaves a node alone after a copy did not get
	// through, doubled with each further one up to maxShunDoublings times.
	shunFor          = 30 * time.Second
	maxShunDoublings = 6
	// balanceShare of the operators that change replicas, as a divisor, are kept
	// free for repair, at least one.
	balanceShare = 4
)

// mayReceive says whether n may be sent one more copy of so many bytes now, for
// what cannot wait: repair, decommissioning, rules, what a person asked for.
// Influence must be up to date.
func (c *cluster) mayReceive(n *node, bytes int64) bool {
	return n.roomFor(bytes, receiveLimit+repairReserve)
}

// mayTake is mayReceive for balancing, which leaves some room for repair, and leaves
// alone for a while a node to which copies do not get through.
func (c *cluster) mayTake(n *node, bytes int64) bool {
	return c.now >= n.sched.shunUntil && n.roomFor(bytes, receiveLimit)
}

// shun notes that a copy did not get through to n: balancing tries it again after a
// while, longer each time.
func (c *cluster) shun(n *node) {
	n.sched.shunUntil = c.now + shunFor<<min(n.sched.shuns, maxShunDoublings)
	n.sched.shuns++
}

// trust notes that a copy got through to n.
func (c *cluster) trust(n *node) { n.sched.shuns, n.sched.shunUntil = 0, never }

func (n *node) roomFor(bytes int64, limit int) bool {
	p := n.pending
	return p.receiving == 0 || p.receiving < limit && p.receivingBytes+bytes <= receiveBytes
}

// maySend says whether n may send one more snapshot for what cannot wait.
func (c *cluster) maySend(n *node) bool {
	return n.pending.sending < sendLimit+repairReserve
}

// mayGive is maySend for balancing.
func (c *cluster) mayGive(n *node) bool { return n.pending.sending < sendLimit }

// receiving returns how many snapshots n receives, by the operators that run.
func (c *cluster) receiving(n *node) int { return n.pending.receiving }

// moveLimit is how many operators that change replicas may run at a time: what was
// configured, or one for each node that can take copies if that is more, since no
// two nodes slow each other down. Their number is that of the last pass of the
// schedulers; a step in which nothing happens counts nothing.
func (c *cluster) moveLimit(configured int) int { return max(configured, c.sched.able) }

func (c *cluster) countAble() {
	c.sched.able = 0
	for _, n := range c.nodes { // order-free: a count
		if n.mayHold() {
			c.sched.able++
		}
	}
}

// spare returns how many of the moves that may begin are left to balancing, given
// how many are allowed at a time.
func spare(limit, left int) int {
	return max(0, left-max(1, limit/balanceShare))
}
