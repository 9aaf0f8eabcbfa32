package ranges

import (
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// A fact is what a leader tells placement about its range. It goes out when
// leadership begins, when the descriptor changes, when a learner catches up,
// and, from maintenance, at most once a second: when the size has moved by more
// than a twentieth, or at all when the range comes to rest; when the load has
// moved by more than a quarter, or to nothing (load.go); when there is another
// reason why a hot range is not split.
//
// When leadership moved to this node the first fact has no load: what it was is
// known elsewhere. The next one, a second or two later, has it, and is sent even
// if it is nothing. Whoever weighs loads keeps the one of before until then.
//
// Nor does it call anybody silent: a leader is ready when a majority has answered
// it, and the others had no time to. Who has not answered a second later is silent,
// and placement is told; and told again when that changes, as long as maintenance
// looks (silentLooks). After that it believes no such word any more.

const (
	// factSizeStep is the part of the size, and factSizeFloor the bytes, by which
	// it must have moved.
	factSizeStep  = 20
	factSizeFloor = 64 << 10
	// answerTime is what replicas are given to answer a new leader.
	answerTime = time.Second
	// silentLooks is how many steps of maintenance look again at who is silent: a
	// range with a dead node's replica costs nothing once they are over.
	silentLooks = 10
)

// factOf makes a fact of a state and what the leader knew of its peers.
func (r *Replica) factOf(s *state, caughtUp, silent []uint64) *metapb.RangeFact {
	w := r.load.watch.Load()
	load := w.load()
	return &metapb.RangeFact{
		Descriptor_:         s.desc,
		LeaderNode:          uint64(r.table.cfg.Node),
		Term:                uint64(s.lead.term),
		Stats:               s.data.Stats.Proto(),
		CaughtUp:            caughtUp,
		Silent:              silent,
		ReadsPerSecond:      load.reads,
		WritesPerSecond:     load.writes,
		CpuMicrosPerSecond:  uint64(load.cpu),
		WriteBytesPerSecond: uint64(load.writeBytes),
		ReadBytesPerSecond:  uint64(load.readBytes),
		HotBecause:          w.because(),
	}
}

// peerNews lists learners that have caught up and replicas that do not answer.
func (r *Replica) peerNews() (caughtUp, silent []uint64) {
	s := r.state.Load()
	for _, p := range r.group().Progress() {
		if p.Replica == r.self {
			continue
		}
		if p.Learner && p.State == "replicate" && p.Match+maxLag >= s.applied {
			caughtUp = append(caughtUp, uint64(p.Replica))
		}
		if !p.RecentActive && !r.upkeep.young(r.table.cfg.Physical.Monotonic()) {
			silent = append(silent, uint64(p.Replica))
		}
	}
	return caughtUp, silent
}

// lookAtSilence tells placement if others are silent than it was told.
func (r *Replica) lookAtSilence() {
	u := &r.upkeep
	if u.looks == 0 {
		return
	}
	if u.young(r.table.cfg.Physical.Monotonic()) {
		r.mark()
		return
	}
	u.looks--
	_, silent := r.peerNews()
	if !slices.Equal(r.load.told.Load().silents(), silent) {
		r.sendFact()
	}
	if len(silent) == 0 {
		u.looks = 0
	}
	if u.looks > 0 {
		r.mark()
	}
}

// sendFact tells placement what is true now. Shard only.
func (r *Replica) sendFact() {
	s := r.state.Load()
	if !s.leads() {
		return
	}
	caughtUp, silent := r.peerNews()
	if f := r.load.told.Load(); len(silent) > 0 && !slices.Equal(f.silents(), silent) {
		r.upkeep.looks = silentLooks
		r.mark()
	}
	// Before the fact is made: what maintenance makes of the load meanwhile is
	// news then, though it may be in the fact already.
	w := r.load.watch.Load()
	r.load.told.Store(&told{
		term: s.lead.term, generation: s.desc.GetGeneration(), stats: s.data.Stats,
		caughtUp: caughtUp, silent: silent,
		load: w.load(), measured: w.measured(), because: w.because(),
	})
	r.table.cfg.OnFact(r.factOf(s, caughtUp, silent))
}

// factIsOld says whether the last fact differs from what is true by more than
// placement should miss.
func (r *Replica) factIsOld(s *state) bool {
	f := r.load.told.Load()
	if f == nil || f.term != s.lead.term || f.generation != s.desc.GetGeneration() {
		return true
	}
	moved := distance(f.size(), s.size())
	return moved > factSizeFloor && moved*factSizeStep > f.size()
}

// toldExactly says whether placement knows the statistics to the last byte.
func (r *Replica) toldExactly(s *state) bool {
	f := r.load.told.Load()
	return f != nil && f.stats == s.data.Stats
}

// Facts returns a fact for every range that this node leads (full report), in
// order of their ids. Any goroutine.
func (t *Table) Facts() []*metapb.RangeFact {
	var facts []*metapb.RangeFact
	for _, r := range t.all() {
		s := r.state.Load()
		if !s.leads() {
			continue
		}
		var caughtUp, silent []uint64
		if f := r.load.told.Load(); f != nil && f.term == s.lead.term {
			caughtUp, silent = f.caughtUp, f.silent
		}
		facts = append(facts, r.factOf(s, caughtUp, silent))
	}
	return facts
}

// Describe reports what this node knows of its replica of range id; done is
// called once, on any goroutine, with false if there is none.
func (t *Table) Describe(
	id ids.RangeID, done func(*adminpb.ReplicaInfo, *adminpb.RangeInfo, bool),
) {
	r := t.replica(id)
	if r == nil {
		done(nil, nil, false)
		return
	}
	task := func() { r.describe(r.group().Status(), done) }
	if err := r.enqueue(multiraft.TaskFunc(task), 0); err != nil {
		s := r.state.Load()
		r.describe(multiraft.Status{
			Term: s.lead.term, Leader: s.lead.leader, IsLeader: s.lead.mine, Applied: s.applied,
		}, func(ri *adminpb.ReplicaInfo, info *adminpb.RangeInfo, ok bool) {
			ri.Error = err.Error()
			done(ri, info, ok)
		})
	}
}

func (r *Replica) describe(
	status multiraft.Status, done func(*adminpb.ReplicaInfo, *adminpb.RangeInfo, bool),
) {
	s := r.state.Load()
	info := &adminpb.ReplicaInfo{
		NodeId:      uint64(r.table.cfg.Node),
		ReplicaId:   uint64(r.self),
		Role:        "uninitialised",
		RaftState:   "follower",
		Term:        uint64(status.Term),
		Commit:      uint64(status.Commit),
		Applied:     uint64(status.Applied),
		FirstIndex:  uint64(status.FirstIndex),
		LastIndex:   uint64(status.LastIndex),
		LogBytes:    status.LogBytes,
		Fingerprint: s.data.Fingerprint,
	}
	switch {
	case status.Halted:
		info.RaftState = "halted"
		info.Error = "this replica halted, see the node's log"
	case status.IsLeader:
		info.RaftState = "leader"
	case status.Leader == 0:
		info.RaftState = "no leader known"
	}
	if s.initialised() {
		info.Role = roleName(replicaOf(s.desc, r.self).GetRole())
	}
	load := r.load.watch.Load().load()
	done(info, &adminpb.RangeInfo{
		Descriptor_:        s.desc,
		LeaderNode:         uint64(s.leaderNode()),
		Term:               uint64(s.lead.term),
		Stats:              s.data.Stats.Proto(),
		CpuMicrosPerSecond: uint64(load.cpu),
		WritesPerSecond:    load.writes,
		ReadsPerSecond:     load.reads,
	}, true)
}

func roleName(role metapb.ReplicaRole) string {
	switch role {
	case roleVoter:
		return "voter"
	case roleLearner:
		return "learner"
	case roleIncoming:
		return "voter-incoming"
	case roleDemoting:
		return "voter-demoting"
	}
	return "voter-outgoing"
}

// silents are the replicas that placement was told are silent; none if it was told
// nothing (nil).
func (t *told) silents() []uint64 {
	if t == nil {
		return nil
	}
	return t.silent
}

// sameCaughtUp says whether placement knows already who caught up.
func (r *Replica) sameCaughtUp(caughtUp []uint64) bool {
	f := r.load.told.Load()
	return f != nil && slices.Equal(f.caughtUp, caughtUp)
}
