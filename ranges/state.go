package ranges

import (
	"github.com/flotilla-kv/flotilla/internal/canary"
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// state is what a replica is, as published: an immutable value. Only the
// group's shard makes a new one.
type state struct {
	desc      *metapb.RangeDescriptor // nil: uninitialised, waits for a snapshot
	bounds    uint64                  // boundsHash of desc
	applied   ids.Index
	term      ids.Term   // of the entry at applied
	data      mvcc.Delta // statistics and fingerprint of all versions
	threshold hlc.Timestamp
	conf      *metapb.ConfState
	lead      leadership
	destroyed bool
	into      ids.RangeID // destroyed because this range absorbed it; else 0
	grown     uint64      // how often the bounds may have widened in this process
}

// leadership is what the replica knows of who leads.
type leadership struct {
	term   ids.Term
	leader ids.ReplicaID // 0: unknown
	mine   bool
	// heir is whom this replica has asked to take leadership over, from then on
	// until somebody is known to lead, or a proposal shows that it did not come to
	// it. Only advice for clients rests on it.
	heir ids.ReplicaID
	// ready: leads and has applied an entry of its own term, so everything
	// that earlier leaders committed is applied. Only then it evaluates.
	ready bool
	// lowWater is the clock, read after the election and after the entry of the
	// own term was applied. Every version of earlier leaders lies at or below
	// it (frames carry stamps), every write of this one above.
	lowWater hlc.Timestamp
}

func newState(rs *store.ReplicaState) *state {
	a := rs.Applied
	return &state{
		desc:    rs.Descriptor,
		bounds:  boundsHash(rs.Descriptor),
		applied: ids.Index(a.GetIndex()),
		term:    ids.Term(a.GetTerm()),
		data: mvcc.Delta{
			Stats:       mvcc.StatsFromProto(a.GetStats()),
			Fingerprint: a.GetFingerprint(),
		},
		threshold: hlc.Timestamp(a.GetGcThreshold()),
		conf:      a.GetConf(),
	}
}

// appliedState is what is stored of s.
func (s *state) appliedState() *metapb.AppliedState {
	return &metapb.AppliedState{
		Index:       uint64(s.applied),
		Term:        uint64(s.term),
		Stats:       s.data.Stats.Proto(),
		Fingerprint: s.data.Fingerprint,
		GcThreshold: uint64(s.threshold),
		Conf:        s.conf,
	}
}

// initialised says whether there is data to serve.
func (s *state) initialised() bool { return s.desc != nil }

// leads says whether this replica may evaluate.
func (s *state) leads() bool { return s.lead.ready && !s.destroyed }

// frozen says whether the range serves nothing, because it is to be absorbed.
func (s *state) frozen() bool {
	return phaseOf(s.desc) == phaseFrozen && !canary.On(canary.FrozenServes)
}

// leaderNode is the node believed to lead, or about to, 0 if unknown.
func (s *state) leaderNode() ids.NodeID {
	leader := s.lead.leader
	if leader == 0 {
		leader = s.lead.heir
	}
	if s.desc == nil || leader == 0 {
		return 0
	}
	return nodeOf(s.desc, leader)
}

// size is what counts against the range size: all versions, so that ranges
// full of garbage are split, too.
func (s *state) size() int64 { return s.data.Stats.KeyBytes + s.data.Stats.ValueBytes }
