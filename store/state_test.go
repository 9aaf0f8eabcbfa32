package store

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func TestEveryKeyObeysTheEncoding(t *testing.T) {
	t.Parallel()
	keys := [][]byte{nodeKey(nodeIdentity), nodeKey(nodeName, []byte("a\x00b")...),
		peerKey(1 << 40), markKey(77), rangeKey(1, rangeTombstone), rangeKey(1<<40, rangeLogEnd),
		logKey(1, 1<<60), spaceKey(prefixLock, []byte("k")),
		spaceKey(prefixData, []byte{0x20}), ownSpan(5).hi}
	for _, k := range keys {
		if err := cockroachkvs.Comparer.ValidateKey.Validate(k); err != nil {
			t.Errorf("key %x: %v", k, err)
		}
		if cockroachkvs.Split(k) != len(k) {
			t.Errorf("key %x has a version", k)
		}
	}
	own := ownSpan(9)
	for _, sub := range []byte{rangeDescriptor, rangeApplied, rangeHardState, rangeTruncated} {
		k := rangeKey(9, sub)
		if cockroachkvs.Compare(k, own.lo) < 0 || cockroachkvs.Compare(k, own.hi) >= 0 {
			t.Errorf("record %x is outside the replica's own span", sub)
		}
	}
	if cockroachkvs.Compare(rangeKey(9, rangeTombstone), own.lo) >= 0 {
		t.Error("the tombstone is inside the replica's own span")
	}
}

func TestReplicasAreListedInOrderOverTheirLogs(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	for _, r := range []ids.RangeID{300, 2, 1, 1 << 33} {
		s.with(t, false, func(b *Batch) {
			d := descriptor(r, "\x20a", "\x20b")
			must(t, s.State().PutDescriptor(b, r, ids.ReplicaID(r+1), d))
			must(t, s.State().PutApplied(b, r, &metapb.AppliedState{Index: 4, Term: 1}))
			must(t, s.Log().InitialGroup(b, r, 4, 1))
		})
		g := mustGroup(t, s, r)
		s.with(t, false, func(b *Batch) { must(t, g.Append(b, entries(5, 40, 1))) })
	}
	s.with(t, false, func(b *Batch) { // neither of these is a replica
		must(t, s.Log().PutTombstone(b, 4, 9))
		must(t, mustGroup(t, s, 5).SetHardState(b, hardStateProto(3, 1, 0)))
	})
	all, err := s.State().Replicas()
	must(t, err)
	var got []ids.RangeID
	for _, rs := range all {
		r := ids.RangeID(rs.Descriptor.GetRangeId())
		got = append(got, r)
		if rs.Replica != ids.ReplicaID(r+1) || rs.Applied.GetIndex() != 4 {
			t.Errorf("replica of %v: %+v", r, rs)
		}
	}
	if len(got) != 4 || got[0] != 1 || got[1] != 2 || got[2] != 300 || got[3] != 1<<33 {
		t.Errorf("replicas of %v", got)
	}
	if rs, err := s.State().Replica(5); rs != nil || err != nil {
		t.Errorf("uninitialised replica: %v, %v", rs, err)
	}
}

// Bug row 19.
func TestTombstoneOutlivesTheReplicaAndACrash(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	user := func(key string) []byte { return versionKey(key, 5) }
	s.with(t, true, func(b *Batch) {
		must(t, s.State().PutDescriptor(b, 6, 3, descriptor(6, "\x20b", "\x20d")))
		must(t, s.State().PutApplied(b, 6, &metapb.AppliedState{Index: 4, Term: 1}))
		must(t, s.Log().InitialGroup(b, 6, 4, 1))
		for _, k := range []string{"\x20a", "\x20b", "\x20c", "\x20d"} {
			must(t, b.Pebble().Set(user(k), []byte("v"), nil))
		}
	})
	s.with(t, true, func(b *Batch) {
		must(t, mustGroup(t, s, 6).Append(b, entries(5, 9, 1)))
		must(t, s.State().PutDescriptor(b, 7, 1, descriptor(7, "\x20d", "\x20e")))
		must(t, s.State().PutApplied(b, 7, &metapb.AppliedState{Index: 4, Term: 1}))
	})
	s.with(t, true, func(b *Batch) {
		must(t, s.Log().PutTombstone(b, 6, 4))
		must(t, s.State().DestroyReplica(b, 6, []byte("\x20b"), []byte("\x20d")))
	})
	s.with(t, true, func(b *Batch) { must(t, s.Log().PutTombstone(b, 6, 2)) }) // never lowered
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	s = mustOpen(t, testOptions(clone))
	defer func() { must(t, s.Close()) }()
	must(t, s.Compact())
	if next, err := s.Log().Tombstone(6); next != 4 || err != nil {
		t.Errorf("tombstone %d, %v", next, err)
	}
	if next, err := s.Log().Tombstone(7); next != 0 || err != nil {
		t.Errorf("tombstone of another range %d, %v", next, err)
	}
	rs, err := s.State().Replica(6)
	if rs != nil || err != nil {
		t.Errorf("replica %v, %v", rs, err)
	}
	left := content(t, s)
	if strings.Count(left, "\n") != 5 { // tombstone, two records of 7, keys a and d
		t.Errorf("left over:\n%s", left)
	}
}

func TestPayloadIsCopiedAndNeverWrittenTo(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	source := s.NewBatch()
	defer source.Close()
	must(t, source.Pebble().Set(versionKey("\x20k", 9), []byte("value"), nil))
	must(t, source.Pebble().Delete(versionKey("\x20k", 8), nil))
	must(t, source.Pebble().DeleteSized(versionKey("\x20k", 7), 4, nil))
	must(t, source.Pebble().DeleteRange(versionKey("\x20x", 0), versionKey("\x20y", 0), nil))
	payload := append([]byte(nil), source.Pebble().Repr()...)
	before := string(payload)
	for range 3 {
		s.with(t, true, func(b *Batch) {
			must(t, b.ApplyRepr(payload))
			must(t, b.ApplyRepr(payload))
			b.Reset()
			must(t, b.ApplyRepr(payload))
		})
	}
	if string(payload) != before {
		t.Error("the payload of an entry was written to")
	}
	clear(payload)
	if v, err := s.get(versionKey("\x20k", 9)); string(v) != "value" || err != nil {
		t.Errorf("value %q, %v", v, err)
	}
}

func TestMalformedPayloadIsAnErrorAndLeavesTheBatchAlone(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	source := s.NewBatch()
	defer source.Close()
	must(t, source.Pebble().Set(versionKey("\x20key", 9), []byte(strings.Repeat("v", 200)), nil))
	good := source.Pebble().Repr()
	bad := [][]byte{nil, {1}, append(append([]byte(nil), good...), 1), make([]byte, 11)}
	for cut := 12 + 1; cut < len(good); cut++ {
		bad = append(bad, good[:cut])
	}
	count := append([]byte(nil), good...)
	binary.LittleEndian.PutUint32(count[8:], 2)
	kind := append([]byte(nil), good...)
	kind[12] = 22 // excise
	bad = append(bad, count, kind)
	for _, key := range [][]byte{rangeKey(1, rangeDescriptor), nodeKey(nodeIdentity), {0x20, 'a'},
		{0x20, 0, 1, 2, 3, 4, 5}, {}} {
		other := s.NewBatch()
		must(t, other.Pebble().Set(key, nil, nil))
		bad = append(bad, append([]byte(nil), other.Pebble().Repr()...))
		other.Close()
	}
	b := s.NewBatch()
	defer b.Close()
	must(t, b.ApplyRepr(good))
	before := string(b.Pebble().Repr())
	for i, payload := range bad {
		if err := b.ApplyRepr(payload); !errors.Is(err, ErrBadPayload) {
			t.Errorf("payload %d: %v", i, err)
		}
		if string(b.Pebble().Repr()) != before {
			t.Fatalf("payload %d changed the batch", i)
		}
	}
	must(t, s.CommitNoSync(b))
}

func TestIdentityJoinsOnceAndBoundNeverFalls(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	id := s.Identity()
	must(t, id.Join(77, 3))
	must(t, id.Join(77, 3))
	wantError(t, id.Join(77, 4), ErrJoined)
	wantError(t, id.Join(78, 3), ErrJoined)
	must(t, id.ExtendBound(500))
	must(t, id.ExtendBound(400))
	counter := id.Record().Counter
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	s = mustOpen(t, testOptions(clone))
	r := s.Identity().Record()
	if r.ClusterID != 77 || r.Node != 3 || r.Bound != 500 || r.Life != 2 || r.Counter != counter+1 {
		t.Errorf("after the crash %+v", r)
	}
	must(t, s.Close())
}

// A directory restored or copied as a whole is whole from within: the peers
// tell.
func TestPeersRememberLivesAndMarksAcrossCrashes(t *testing.T) {
	t.Parallel()
	mem := vfs.NewCrashableMem()
	s := mustOpen(t, testOptions(mem))
	must(t, s.Identity().MetPeer(2, 5, 50))
	must(t, s.Identity().MetPeer(2, 5, 50))
	must(t, s.Identity().MetPeer(3, 1, 50))
	must(t, s.Identity().MetPeer(2, 6, 60))
	clone := mem.CrashClone(vfs.CrashCloneCfg{})
	must(t, s.Close())
	s = mustOpen(t, testOptions(clone))
	defer func() { must(t, s.Close()) }()
	id := s.Identity()
	wantError(t, id.MetPeer(2, 5, 50), ErrEarlierLife)
	wantError(t, id.MetPeer(2, 6, 61), ErrCopiedStore)
	must(t, id.MetPeer(2, 6, 60))
	must(t, id.MetPeer(2, 8, 61))
	must(t, id.MetPeer(3, 1, 50))
}

func TestStateRoundTripsThroughItsRecords(t *testing.T) {
	t.Parallel()
	s := openTest(t)
	d := descriptor(2, "\x20", "\x21")
	a := &metapb.AppliedState{Index: 9, Term: 2, Fingerprint: 1 << 60,
		Stats: &metapb.RangeStats{Keys: 4, LiveBytes: 99},
		Conf:  &metapb.ConfState{Voters: []uint64{1}}}
	s.with(t, true, func(b *Batch) {
		must(t, s.State().PutDescriptor(b, 2, 8, d))
		must(t, s.State().PutApplied(b, 2, a))
	})
	rs, err := s.State().Replica(2)
	must(t, err)
	if rs.Replica != 8 || !proto.Equal(rs.Descriptor, d) || !proto.Equal(rs.Applied, a) {
		t.Errorf("read back %+v", rs)
	}
	s.with(t, true, func(b *Batch) { must(t, s.State().PutLocal(b, "x", []byte("1"))) })
	s.with(t, true, func(b *Batch) { must(t, s.State().PutLocal(b, "x", nil)) })
	if v, err := s.State().GetLocal("x"); v != nil || err != nil {
		t.Errorf("removed record %q, %v", v, err)
	}
}
