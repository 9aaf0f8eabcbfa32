package ranges

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/store"
)

// Bootstrap commits a new cluster into an empty store: range 1 (the system
// range) and range 2 (the first user range), one replica each, here. One
// durable batch, so that a crash leaves all or nothing; with all there it does
// nothing.
func Bootstrap(s *store.Store, node ids.NodeID) error {
	existing, err := s.State().Replica(1)
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if existing != nil {
		return nil
	}
	b := s.NewBatch()
	bounds := []byte{kv.SystemPrefix, kv.UserPrefix, kv.EndPrefix}
	for id := ids.RangeID(1); id <= 2; id++ {
		d := &metapb.RangeDescriptor{
			RangeId:    uint64(id),
			Start:      bounds[id-1 : id],
			End:        bounds[id : id+1],
			Generation: 1,
			Replicas: []*metapb.Replica{
				{NodeId: uint64(node), ReplicaId: 1, Role: roleVoter},
			},
			NextReplicaId: 2,
		}
		if err := stageFirst(s, b, d); err != nil {
			b.Close()
			return fmt.Errorf("bootstrap %v: %w", id, err)
		}
	}
	// The batch belongs to the pending sync until Wait returns.
	sync, err := s.CommitSync(b)
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	err = sync.Wait()
	b.Close()
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

func stageFirst(s *store.Store, b *store.Batch, d *metapb.RangeDescriptor) error {
	id := ids.RangeID(d.GetRangeId())
	st := &state{desc: d, applied: firstIndex, term: firstTerm, conf: confOf(d)}
	if err := s.State().PutDescriptor(b, id, 1, d); err != nil {
		return err
	}
	if err := s.State().PutApplied(b, id, st.appliedState()); err != nil {
		return err
	}
	return s.Log().InitialGroup(b, id, firstIndex, firstTerm)
}
