package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/store"
	"github.com/flotilla-kv/flotilla/support"
)

// promiseRecord is the node-local record that holds the longest support, in
// nanoseconds, that any life of this node may have promised.
const promiseRecord = "longest-promise"

// diskStall is how long a sync may take before this node asks for no support:
// its leaders cannot commit, and nobody may take over while it is supported.
const diskStall = 1500 * time.Millisecond

// raisePromise makes durable that this life may promise support for d, before it
// does: the next life waits for the end of what this one may have promised (R6).
// It returns what earlier lives may have promised, 0 for none, and what this one
// may. The record only rises: this life promises as much as the earlier ones
// did, so that a cluster whose flag is lowered node by node goes on.
func raisePromise(st *store.Store, d time.Duration) (earlier, most time.Duration, err error) {
	data, err := st.State().GetLocal(promiseRecord)
	if err != nil {
		return 0, 0, fmt.Errorf("read the longest promise: %w", err)
	}
	if data != nil && len(data) != 8 {
		return 0, 0, fmt.Errorf("read the longest promise: %d bytes instead of 8", len(data))
	}
	if data != nil {
		earlier = time.Duration(binary.LittleEndian.Uint64(data))
	}
	if d <= earlier {
		return earlier, earlier, nil
	}
	b := st.NewBatch()
	defer b.Close()
	data = binary.LittleEndian.AppendUint64(nil, uint64(d))
	if err := st.State().PutLocal(b, promiseRecord, data); err != nil {
		return 0, 0, fmt.Errorf("write the longest promise: %w", err)
	}
	pending, err := st.CommitSync(b)
	if err == nil {
		err = pending.Wait()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("write the longest promise: %w", err)
	}
	return earlier, d, nil
}

// newSupport makes the table of promises. The boot wait begins here.
func (n *node) newSupport(phys hlc.Clock) (*support.Table, error) {
	earlier, most, err := raisePromise(n.store, n.cfg.SupportDuration)
	if err != nil {
		return nil, err
	}
	log := n.cfg.Logger
	return support.New(support.Config{
		Self: n.self, Life: n.store.Identity().Record().Life,
		Clock: n.clock, Physical: phys, Deviation: n.s.clock.Deviation,
		Duration: n.cfg.SupportDuration, Interval: n.cfg.SupportInterval,
		LongestPromised: earlier, MaxPromise: most,
		Healthy: func() bool { return !n.store.SyncStalled(diskStall) },
		OnWithdrawn: func(p ids.NodeID, why support.Reason) {
			log.Info("promise withdrawn", "node", p, "reason", why.String())
			n.host.Withdrawn(p, why)
		},
		OnSupported: func(p ids.NodeID, e support.Epoch) { n.host.Supported(p, e) },
		OnUnsupported: func(p ids.NodeID) {
			log.Info("support has lapsed", "node", p)
			n.host.Unsupported(p)
		},
		OnMismatch: func(p ids.NodeID) {
			log.Debug("nodes disagree on who follows", "node", p)
			n.host.Mismatch(p)
		},
		OnVotes: func() { n.host.MayVote() },
	}), nil
}

// expireSupport calls the table at the times that it names, and says how late it
// comes: this node may have been starved, with requests waiting unread.
func (n *node) expireSupport(ctx context.Context) error {
	next := time.Duration(0) // on the lease clock; 0: nothing is expected
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-n.support.Changed():
		}
		late := time.Duration(0)
		if next != 0 {
			late = max(0, n.support.Now()-next)
		}
		if next = n.support.Expire(late); next == 0 {
			timer.Stop()
			continue
		}
		timer.Reset(max(0, next-n.support.Now()))
	}
}
