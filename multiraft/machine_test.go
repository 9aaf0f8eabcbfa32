package multiraft

import (
	"fmt"
	"hash/fnv"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// machine is a StateMachine that remembers what it applied and hashes it into
// the applied state.
type machine struct {
	n  *node
	r  ids.RangeID
	g  *Group
	ts Status // last Changed

	pending  [][]byte // proposed at Flush
	results  []error  // of those proposals
	index    ids.Index
	hash     uint64
	conf     *raftpb.ConfState
	log      []string // payloads applied since the start
	changes  []string
	installs []string
	applies  int
	events   func(string)         // optional
	refuse   func(string) error   // Apply fails
	splits   func(string) bool    // structural
	notYet   func(string) bool    // Apply must wait
	onApply  func(payload string) // called from Apply
	applied  func()               // called from Applied
	restored uint64
}

func (m *machine) event(f string, args ...any) {
	if m.events != nil {
		m.events(fmt.Sprintf(f, args...))
	}
}

func (m *machine) Flush() {
	if len(m.pending) == 0 {
		return
	}
	p := m.pending
	m.pending = nil
	m.results = append(m.results, m.g.Propose(p))
}

func (m *machine) Apply(b *store.Batch, entries []*raftpb.Entry) (int, error) {
	m.applies++
	taken := 0
	var last *raftpb.Entry
	var stop bool
	for _, e := range entries {
		if ids.Index(e.GetIndex()) != m.index+1 {
			m.n.c.t.Errorf("node %d range %d applies %d after %d",
				m.n.id, m.r, e.GetIndex(), m.index)
		}
		if m.notYet != nil && m.notYet(string(e.GetData())) {
			if stop = true; taken == 0 {
				return 0, ErrNotYet
			}
			break
		}
		if m.refuse != nil {
			if err := m.refuse(string(e.GetData())); err != nil {
				// Something is staged already: the host must take it out again.
				_ = m.stage(b, e.GetIndex(), e.GetTerm())
				return taken, err
			}
		}
		m.applyEntry(e)
		m.index, last = ids.Index(e.GetIndex()), e
		if taken++; m.splits != nil && m.splits(string(e.GetData())) {
			stop = true
			break
		}
	}
	m.event("node %d applies to %d structural %v", m.n.id, last.GetIndex(), stop)
	return taken, m.stage(b, last.GetIndex(), last.GetTerm())
}

func (m *machine) applyEntry(e *raftpb.Entry) {
	if e.GetType() == raftpb.EntryConfChangeV2 {
		var cc raftpb.ConfChangeV2
		if err := proto.Unmarshal(e.GetData(), &cc); err != nil {
			m.n.c.t.Fatal(err)
		}
		m.conf = m.g.ApplyConfChange(&cc)
		m.g.SetPeers(peersOf(m.conf))
		m.event("node %d configuration %v %v %v", m.n.id,
			m.conf.Voters, m.conf.VotersOutgoing, m.conf.Learners)
		return
	}
	if len(e.GetData()) > 0 {
		m.log = append(m.log, string(e.GetData()))
		h := fnv.New64a()
		fmt.Fprintf(h, "%x %d %s", m.hash, e.GetIndex(), e.GetData())
		m.hash = h.Sum64()
		if m.onApply != nil {
			m.onApply(string(e.GetData()))
		}
	}
}

func (m *machine) stage(b *store.Batch, index, term uint64) error {
	return m.n.store.State().PutApplied(b, m.r, &metapb.AppliedState{
		Index: index, Term: term, Fingerprint: m.hash,
		Conf: &metapb.ConfState{
			Voters: m.conf.GetVoters(), Learners: m.conf.GetLearners(),
			VotersOutgoing: m.conf.GetVotersOutgoing(), LearnersNext: m.conf.GetLearnersNext(),
		},
	})
}

func (m *machine) Applied() {
	m.event("node %d applied %d", m.n.id, m.g.applied)
	if m.applied != nil {
		m.applied()
	}
}

func (m *machine) Changed(s Status) {
	m.ts = s
	m.changes = append(m.changes,
		fmt.Sprintf("term %d leader %d halted %v", s.Term, s.Leader, s.Halted))
	m.event("node %d hears of term %d leader %d", m.n.id, s.Term, s.Leader)
}

func (m *machine) Restored() error {
	rs, err := m.n.store.State().Replica(m.r)
	if err != nil {
		return err
	}
	m.index, m.hash = ids.Index(rs.Applied.GetIndex()), rs.Applied.GetFingerprint()
	m.conf = confState(rs.Applied.GetConf())
	m.g.SetPeers(peersOf(m.conf))
	m.restored++
	if m.applied != nil {
		m.applied()
	}
	m.event("node %d restored at %d", m.n.id, m.index)
	return nil
}

// propose proposes payloads in one task and returns nothing: see results.
func (m *machine) propose(payloads ...string) {
	m.n.c.t.Helper()
	m.do(func() {
		for _, p := range payloads {
			m.pending = append(m.pending, []byte(p))
		}
	})
}

// put proposes and settles, and expects the payload applied here.
func (m *machine) put(payloads ...string) {
	m.n.c.t.Helper()
	m.propose(payloads...)
	m.n.c.settle()
	for _, p := range payloads {
		if !slices.Contains(m.log, p) {
			m.n.c.t.Fatalf("%q was not applied at node %d: %v", p, m.n.id, m.results)
		}
	}
}

func (m *machine) change(t raftpb.ConfChangeTransition, ccs string) error {
	m.n.c.t.Helper()
	changes, err := raftpb.ConfChangesFromString(ccs)
	if err != nil {
		m.n.c.t.Fatal(err)
	}
	cc := &raftpb.ConfChangeV2{Transition: t.Enum(), Changes: changes, Context: []byte("change")}
	m.do(func() { err = m.g.ProposeConfChange(cc) })
	m.n.c.settle()
	return err
}

// leave leaves a joint configuration.
func (m *machine) leave() error {
	var err error
	m.do(func() { err = m.g.ProposeConfChange(&raftpb.ConfChangeV2{Context: []byte("leave")}) })
	m.n.c.settle()
	return err
}

type waiter struct {
	called int
	err    error
}

func (w *waiter) ReadReady(err error) { w.called++; w.err = err }
