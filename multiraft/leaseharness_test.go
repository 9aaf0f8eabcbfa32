package multiraft

import (
	"slices"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// leases is a cluster whose nodes support one another, on one scripted clock.
type leases struct {
	*cluster
	now    time.Duration
	tables map[ids.NodeID]*support.Table
	clocks map[ids.NodeID]*hlc.Hybrid
	// cut says that support requests from one node to another are lost, and with
	// them their answers.
	cut func(from, to ids.NodeID) bool
}

// Wall and Monotonic are the clock of all nodes.
func (l *leases) Wall() int64              { return 1_000_000 + l.now.Milliseconds() }
func (l *leases) Monotonic() time.Duration { return l.now }

func newLeases(t testing.TB, n int, tune func(*Config)) *leases {
	l := &leases{now: time.Hour, tables: map[ids.NodeID]*support.Table{},
		clocks: map[ids.NodeID]*hlc.Hybrid{}}
	l.cluster = newCluster(t, n, func(cfg *Config) {
		cfg.Shards = 1
		if tune != nil {
			tune(cfg)
		}
		node := cfg.Node
		life := cfg.Store.Identity().Record().Life
		clock := hlc.NewHybrid(l, 1, time.Hour)
		clock.SetBound(hlc.MaxTimestamp)
		cfg.Support = support.New(support.Config{
			Self: node, Life: life, Clock: clock, Physical: l,
			LongestPromised: support.DefaultDuration,
			OnWithdrawn:     func(p ids.NodeID, why support.Reason) { l.nodes[node].host.Withdrawn(p, why) },
			OnSupported:     func(p ids.NodeID, e support.Epoch) { l.nodes[node].host.Supported(p, e) },
			OnUnsupported:   func(p ids.NodeID) { l.nodes[node].host.Unsupported(p) },
			OnMismatch:      func(p ids.NodeID) { l.nodes[node].host.Mismatch(p) },
			OnVotes:         func() { l.nodes[node].host.MayVote() },
		})
		l.tables[node], l.clocks[node] = cfg.Support, clock
	})
	return l
}

// beat lets every node ask for support once.
func (l *leases) beat() {
	for _, from := range l.order {
		if l.nodes[from].down {
			continue
		}
		for _, to := range l.tables[from].Wanted() {
			lost := l.nodes[to] == nil || l.nodes[to].down || l.cut != nil && l.cut(from, to)
			req, ok := l.tables[from].Request(to)
			if !ok || lost {
				continue
			}
			if grant, ok := l.tables[to].HandleRequest(from, req); ok {
				l.tables[from].HandleGrant(to, grant)
			}
		}
	}
}

// pass lets time go by: requests each 50 ms, a tick each 100 ms.
func (l *leases) pass(d time.Duration) {
	const step = 10 * time.Millisecond
	for end := l.now + d; l.now < end; {
		l.now += step
		if l.now%(50*time.Millisecond) == 0 {
			l.beat()
		}
		for _, id := range l.order {
			if !l.nodes[id].down {
				l.tables[id].Expire(0)
				if l.now%(100*time.Millisecond) == 0 {
					l.nodes[id].host.Tick()
				}
			}
		}
		l.settle()
	}
}

// holders are the nodes that hold the lease of a range now.
func (l *leases) holders(r ids.RangeID) []ids.NodeID {
	var all []ids.NodeID
	for _, id := range l.order {
		m := l.nodes[id].machines[r]
		if l.nodes[id].down || m == nil {
			continue
		}
		if p := m.g.lease.Load(); p != nil && m.g.Lease(p.term, 0) == LeaseHeld {
			all = append(all, id)
		}
	}
	return all
}

// leader passes time until one node holds the lease of a range.
func (l *leases) leader(r ids.RangeID) *machine {
	l.t.Helper()
	for range 500 {
		if held := l.holders(r); len(held) == 1 {
			return l.nodes[held[0]].machines[r]
		}
		l.pass(10 * time.Millisecond)
	}
	l.t.Fatalf("nobody holds the lease of range %d", r)
	return nil
}

// lead makes a node the holder.
func (l *leases) lead(r ids.RangeID, id ids.NodeID) *machine {
	l.t.Helper()
	for range 5 {
		m := l.leader(r)
		if m.n.id == id {
			return m
		}
		m.do(func() { m.g.TransferLeader(l.nodes[id].machines[r].g.cfg.Replica) })
		l.pass(500 * time.Millisecond)
	}
	l.t.Fatalf("node %d does not come to lead range %d", id, r)
	return nil
}

// asleep says whether no group is awake and nothing is under way.
func (l *leases) asleep() bool {
	for _, id := range l.order {
		if n := l.nodes[id]; !n.down {
			for _, s := range n.host.shards {
				if len(s.active) > 0 {
					return false
				}
			}
		}
	}
	return len(l.wire) == 0
}

// isolate drops every message to and from a node, support included.
func (l *leases) isolate(nodes ...ids.NodeID) {
	away := func(a, b ids.NodeID) bool {
		return slices.Contains(nodes, a) != slices.Contains(nodes, b)
	}
	l.cut = away
	l.drop = func(from, to ids.NodeID, _ *Message) bool { return away(from, to) }
}

func (l *leases) heal() { l.cut, l.drop = nil, nil }

// put proposes an entry and passes a little time; true if it was applied there.
func (l *leases) put(m *machine, payload string) bool {
	m.do(func() { m.pending = append(m.pending, []byte(payload)) })
	l.pass(30 * time.Millisecond)
	return slices.Contains(m.log, payload)
}

// inject hands a message to a node as if it came from another.
func (l *leases) inject(from, to ids.NodeID, m Message) {
	l.nodes[to].host.Receive(Frame{From: from, Messages: []Message{m}})
	l.nodes[to].poll()
	l.nodes[to].sync()
}

func vote(pre bool, from, to ids.ReplicaID, term uint64, m *machine) *raftpb.Message {
	kind := raftpb.MsgVote
	if pre {
		kind = raftpb.MsgPreVote
	}
	last, _ := m.g.log.LastIndex()
	lastTerm, _ := m.g.log.Term(last)
	return &raftpb.Message{
		Type: kind.Enum(), From: new(uint64(from)), To: new(uint64(to)), Term: new(term),
		LogTerm: new(lastTerm), Index: new(last),
	}
}
