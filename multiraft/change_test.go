package multiraft

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Two changes of the configuration in a row, and a follower that has both in its log,
// on disk, and comes back from a crash having applied neither. The first is committed:
// else the second would not be there. If the follower does not know that, it believes
// in the configuration before both, of which a majority need not meet one of the
// configuration after both. Bug classes 30 and 32.

// swapped has voters 1, 2 (which leads) and 3 and a learner on node 4, ready to take
// the place of node 1.
func swapped(t testing.TB) (*cluster, *machine) {
	t.Helper()
	c := newCluster(t, 4, nil)
	c.bootstrap(7, 1, 2, 3)
	m := c.elect(7, 2)
	m.put("before")
	if err := m.change(simple, "l4"); err != nil {
		t.Fatal(err)
	}
	c.tick(6)
	return c, m
}

// counted cuts nodes 1 and 3 from nodes 2 and 4, which are the majority of the voters
// by now, and says what is wrong if 1 and 3 take themselves for one.
func counted(c *cluster, m *machine) (wrong string) {
	c.t.Helper()
	if got := m.conf; !slices.Equal(got.Voters, []uint64{2, 3, 4}) ||
		len(got.VotersOutgoing) > 0 {
		c.t.Fatalf("the story is not told: configuration %v", got)
	}
	c.drop = func(from, to ids.NodeID, _ *Message) bool { return from%2 != to%2 }
	m.put("acknowledged")
	c.tick(60)
	other := c.nodes[3].machines[7]
	both := uint64(min(m.g.applied, other.g.applied))
	mine, err := m.g.log.Term(both)
	theirs, err2 := other.g.log.Term(both)
	if err != nil || err2 != nil {
		c.t.Fatal(err, err2)
	}
	if mine != theirs {
		return fmt.Sprintf("index %d is committed and applied in term %d on nodes 2 and 4, and "+
			"in term %d on nodes 1 and 3", both, mine, theirs)
	}
	c.drop = nil
	c.tick(60)
	c.agree(7, 2, 3, 4)
	if !slices.Contains(c.nodes[3].machines[7].log, "acknowledged") {
		c.t.Fatalf("node 3 has applied %v", c.nodes[3].machines[7].log)
	}
	return ""
}

// The follower's applies are parked, as behind an absorb, when it is killed.
func killedBehindTwoChanges(t testing.TB) (wrong string) {
	c, m := swapped(t)
	slow := c.nodes[3].machines[7]
	slow.notYet = func(string) bool { return true }
	if err := m.change(joint, "v4 l1"); err != nil {
		t.Fatal(err)
	}
	if err := m.leave(); err != nil {
		t.Fatal(err)
	}
	c.tick(2)
	if slow.status().LastIndex != m.status().LastIndex {
		t.Fatalf("its log ends at %d, not at %d", slow.status().LastIndex, m.status().LastIndex)
	}
	c.nodes[3].crash()
	c.nodes[3].restart()
	return counted(c, m)
}

// Nothing is parked: the follower applies the first change, which is not synced, while
// the append of the second is. The power goes when that was acknowledged.
func powerCutBehindTwoChanges(t testing.TB) (wrong string) {
	c, m := swapped(t)
	n3 := c.nodes[3]
	n3.machines[7].events = func(string) {
		for n3.host.CompleteSync(1) { // the sync is faster than this apply
		}
	}
	if err := m.change(joint, "v4 l1"); err != nil {
		t.Fatal(err)
	}
	var err error
	m.do(func() { err = m.g.ProposeConfChange(&raftpb.ConfChangeV2{Context: []byte("leave")}) })
	if err != nil {
		t.Fatal(err)
	}
	want := m.status().LastIndex
	for range 20 {
		c.nodes[2].sync()
		c.deliver()
		n3.poll()
		if n3.machines[7].status().LastIndex == want {
			break
		}
	}
	n3.sync() // and acknowledged
	disk := n3.fs.CrashClone(vfs.CrashCloneCfg{})
	c.settle()
	n3.close()
	n3.fs, n3.jobs = disk, nil
	n3.restart()
	n3.poll()
	if last := n3.machines[7].status().LastIndex; last != want {
		t.Fatalf("the story is not told: its log ends at %d, not at %d", last, want)
	}
	return counted(c, m)
}

func TestAFollowerKilledBehindTwoChangesKnowsTheFirst(t *testing.T) {
	t.Parallel()
	if wrong := killedBehindTwoChanges(t); wrong != "" {
		t.Fatal(wrong)
	}
}

func TestPowerCutBehindTwoChangesLeavesTheFirst(t *testing.T) {
	t.Parallel()
	if wrong := powerCutBehindTwoChanges(t); wrong != "" {
		t.Fatal(wrong)
	}
}
