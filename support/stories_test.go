package support

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// Each story is played here with all rules on, where it must end well. In a build
// with the tag canary it is played with one rule off, where it must end in the
// violation that it was written for (planted_test.go).

func endsWell(t *testing.T, story func(w *world)) {
	t.Helper()
	t.Parallel()
	w := newWorld(t, 3)
	story(w)
	if w.violation != "" {
		t.Fatal(w.violation)
	}
}

// Node 1 is cut off for longer than D. The replica on node 2 helps to elect the
// one on node 3. Then node 1 is in touch again and is promised support again; the
// ack that it had must not match.
func storyOfAGap(w *world) {
	w.lead()
	w.block = on(1)
	w.run(400 * ms)
	if !w.follow(2, 3) {
		w.fail("node 2 is still bound to node 1")
	}
	w.block = nothing
	w.run(200 * ms)
}

func TestGapInSupportThenOldAcks(t *testing.T) { endsWell(t, storyOfAGap) }

// A request of node 1's first life arrives when its second life leads. Who takes
// it for another restart withdraws at once from a leader that lives.
func storyOfALateLife(w *world) {
	w.run(20 * ms)
	w.block = func(p packet) bool {
		return p.from == 1 && p.to == 2 && p.request != nil && len(w.held) == 0
	}
	w.run(60 * ms)
	w.restart(1)
	w.run(300 * ms)
	w.lead()
	w.run(60 * ms)
	w.arrive(w.held...)
	w.check()
}

func TestRequestOfAnEarlierLifeArrivesLate(t *testing.T) { endsWell(t, storyOfALateLife) }

// Grants travel for 80 ms, and then node 1 is cut off.
func storyOfSlowGrants(w *world) {
	w.lead()
	w.block = func(p packet) bool { return p.to == 1 && p.grant != nil }
	w.run(60 * ms)
	grants := w.held
	w.block = on(1)
	w.run(80 * ms)
	w.arrive(grants...)
	w.run(200 * ms)
}

func TestGrantIsSlow(t *testing.T) { endsWell(t, storyOfSlowGrants) }

// The leader's lease clock is slow, those of the others are fast.
func storyOfDrift(w *world) {
	w.node(1).setRate(1 - 1./driftPart)
	w.node(2).setRate(1 + 1./driftPart)
	w.node(3).setRate(1 + 1./driftPart)
	w.lead()
	w.run(300 * ms)
	w.block = on(1)
	w.run(300 * ms)
}

func TestLeaseClocksDriftApart(t *testing.T) { endsWell(t, storyOfDrift) }

// The machine of node 1 stands still, and with it every clock that the lease is
// measured on. When it goes on, a promise that ended long ago seems fresh; only the
// wall clock, set right, has moved apart. The next request repairs it.
func storyOfAFreeze(w *world) {
	w.lead()
	w.run(100 * ms)
	w.freeze(1, 400*ms)
	if !w.follow(2, 3) {
		w.fail("node 2 is still bound to node 1")
	}
	w.check()
	w.run(DefaultInterval + 5*ms)
	if !w.follow(3, 1) || !w.counts(1, 3, 0) {
		w.fail("node 1 is counted out for good")
	}
}

func TestSupportDoesNotCountAfterTheMachineWasFrozen(t *testing.T) { endsWell(t, storyOfAFreeze) }

// Node 2 restarts, and forgets what it promised.
func storyOfAForgetfulNode(w *world) {
	w.lead()
	w.run(60 * ms)
	w.block = on(1)
	w.restart(2)
	w.run(400 * ms)
	if !w.node(2).mayVote() {
		w.fail("node 2 never votes again")
	}
}

func TestSupporterRestartsAndVotesAtOnce(t *testing.T) { endsWell(t, storyOfAForgetfulNode) }

// Node 2 restarts, waits, elects another, and supports node 1 again: its first
// promise of this life, as the one before was the first of that life.
func storyOfRepeatedEpochs(w *world) {
	w.node(3).table.Want(2, -1) // so that node 2's promises are to node 1 alone
	w.lead()
	w.block = on(1)
	w.restart(2)
	w.node(3).table.Want(2, 0)
	w.run(400 * ms)
	if !w.follow(2, 3) {
		w.fail("node 2 never votes again")
	}
	w.block = nothing
	w.run(100 * ms)
}

func TestSupporterRestartsAndEpochsRepeat(t *testing.T) { endsWell(t, storyOfRepeatedEpochs) }

// Node 1 asks for a second. Node 3 has made durable that it may promise so much and
// does; node 2 has not. Both restart, and wait for as long as their disks say.
func storyOfALongPromise(w *world) {
	w.node(1).duration, w.node(3).longest = time.Second, time.Second
	w.restart(1)
	w.restart(3)
	w.run(1100 * ms)
	w.follow(2, 1)
	if !w.follow(3, 1) || !w.counts(1, 3, 0) {
		w.fail("node 3 does not promise what its disk allows")
	}
	w.check()
	w.block = on(1)
	w.restart(2)
	w.restart(3)
	w.run(1100 * ms)
	if !w.node(2).mayVote() || !w.node(3).mayVote() {
		w.fail("node 2 or node 3 never votes again")
	}
}

func TestARestartOutwaitsTheLongestPromise(t *testing.T) { endsWell(t, storyOfALongPromise) }

// Node 1 leaves its term, and the news of it is lost; its node is well and goes on
// being supported. Without the question, node 2's replica follows nobody for ever.
func storyOfALostDeparture(w *world) {
	w.lead()
	mark := Mark(7, 2, 9)
	a, b, n := w.node(1).table.Peer(2), w.node(2).table.Peer(1), w.node(2)
	a.NoteAck(mark, 1)
	b.NoteRecord(mark, 1)
	w.run(2 * MismatchAfter)
	if n.countTold("mismatch n1") != 0 {
		w.fail("node 2 doubts a leader that leads")
	}
	a.NoteAck(mark, -1)
	delete(w.node(1).acks, 2)
	for end := w.now + time.Minute; w.now < end && n.bindsItself(); w.run(100 * ms) {
		if n.countTold("mismatch n1") > 0 { // it asks, and is told that node 1 has left
			b.NoteRecord(mark, -1)
			n.follows, n.epoch = 0, 0
		}
	}
	if !w.follow(2, 3) {
		w.fail("node 2 is bound to n1, which left a minute ago")
	}
}

func TestAFollowerWhoseLeaderLeftUnheardAsksAndIsFree(t *testing.T) {
	endsWell(t, storyOfALostDeparture)
}

// A client asks node 1 for a read in its future. Then node 1 falls silent, and
// node 2 writes as soon as it is free.
func storyOfAReadAboveTheCeiling(w *world) {
	w.lead()
	n := w.node(1)
	w.read(1, 2, hlc.New(n.Wall()+20, 0))
	w.read(1, 2, hlc.New(n.Wall()+380, 0))
	w.block = on(1)
	w.run(300 * ms)
}

func TestReadAboveTheCeilingThenSilence(t *testing.T) { endsWell(t, storyOfAReadAboveTheCeiling) }

// The wall clock of node 1 is further ahead than node 2's durable bound. Node 2
// restarts instead of withdrawing, and begins there.
func storyOfALateBound(w *world) {
	w.node(1).skew = 1000
	w.lead()
	ts, err := w.node(1).clock.Now()
	if err != nil {
		w.tb.Fatal(err)
	}
	w.block = on(1)
	w.read(1, 2, ts)
	w.restart(2)
	w.run(400 * ms)
}

func TestSupporterWithASlowClockRestarts(t *testing.T) { endsWell(t, storyOfALateBound) }

// Node 2 stops as asked, in the middle of a promise: it records where its next life
// is to begin. Its last requests are answered after that, while the process ends.
// Node 1 goes on reading under the promise, up to what it was granted, and nobody
// else tells node 2 how far the clocks are.
func storyOfACleanStop(w *world) {
	a := w.node(1)
	a.skew = 100
	w.lead()
	w.node(2).stop()
	w.run(100 * ms)
	if !w.read(1, 2, a.table.Peer(2).View().Ceiling) {
		w.fail("node 1 does not count node 2, whose promise lives")
	}
	w.block = on(2)
	w.restart(2)
	w.run(400 * ms)
	if !w.follow(2, 3) {
		w.fail("node 2 never votes again")
	}
}

func TestANextLifeBeginsAboveWhatIsReadUnderTheLastOne(t *testing.T) {
	endsWell(t, storyOfACleanStop)
}

// Leaderships move quickly and each end passes the ceiling, as a withdrawal does.
// Measured from the hybrid clock each would raise the next ceiling by D.
func storyOfPassedCeilings(w *world) {
	w.run(20 * ms)
	for range 20 {
		w.node(1).ask()
		w.run(3 * ms)
		w.node(2).table.PassCeiling(1)
		w.node(2).ask()
		w.run(3 * ms)
		w.node(1).table.PassCeiling(2)
	}
	limit := DefaultDuration + 40*sliver
	for _, n := range w.nodes {
		if ahead := n.clock.Peek().Wall() - n.Wall(); ahead > limit.Milliseconds() {
			w.fail("the clock of %v is %d ms ahead of every wall clock", n.id, ahead)
		}
	}
}

func TestCeilingsDoNotDriveTheClocksAhead(t *testing.T) { endsWell(t, storyOfPassedCeilings) }

// D after the last request the wall clocks have passed its ceiling: a failover
// leaves clocks that agree where they are.
func TestFailoverLeavesTheClocksAlone(t *testing.T) {
	endsWell(t, func(w *world) {
		for range 10 {
			w.run(100 * ms)
			w.block = on(1)
			w.run(300 * ms)
			for _, n := range w.nodes {
				if n.table.Peer(1).Promise() != 0 {
					w.fail("%v still supports node 1", n.id)
				}
				if ahead := n.clock.Peek().Wall() - n.Wall(); ahead > 0 {
					w.fail("the clock of %v is %d ms ahead of the wall clock", n.id, ahead)
				}
			}
			w.block = nothing
		}
	})
}

// Node 1 reads until the last moment, its wall clock ahead of all others'. Whoever
// is free of the promise has a clock above all that it read.
func storyOfReadsUntilTheEnd(w *world) {
	w.node(1).skew = 100
	w.lead()
	w.run(50 * ms)
	w.block = on(1)
	reads := 0
	for range 300 {
		if ts, err := w.node(1).clock.Now(); err == nil && w.read(1, 2, ts) {
			reads++
		}
		w.run(ms)
	}
	if reads < 150 {
		w.fail("only %d reads were served", reads)
	}
}

func TestReadsUntilTheLeaseEndsLieBelowTheClockOfWhoeverIsFree(t *testing.T) {
	endsWell(t, storyOfReadsUntilTheEnd)
}

// A node that comes back as another process frees its followers at once.
func TestALaterLifeIsWithdrawnFromAtOnce(t *testing.T) {
	endsWell(t, func(w *world) {
		w.lead()
		w.read(1, 2, hlc.New(w.node(1).Wall()+20, 0))
		w.restart(1)
		w.run(5 * ms)
		n := w.node(2)
		if n.countTold("withdrawn n1 later_life") != 1 || !n.mayVote() {
			w.fail("node 2 is told %v", n.told)
		}
		if n.table.Peer(1).Promise() == 0 {
			w.fail("the later life is not supported")
		}
	})
}
