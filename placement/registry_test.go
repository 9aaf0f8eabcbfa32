package placement

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

func activeDriver(t *testing.T, kv *memKV) *Driver {
	t.Helper()
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: kv})
	d.SetActive(true, 0)
	if !kv.delayed && kv.failing == nil && !d.Active() {
		t.Fatal("driver did not read its registry")
	}
	return d
}

func joining(store uint64) *adminpb.JoinRequest {
	return &adminpb.JoinRequest{Node: &metapb.NodeDescriptor{
		StoreId: store, Address: fmt.Sprintf("s%d:1", store), Life: 1,
	}}
}

func join(t *testing.T, d *Driver, r *adminpb.JoinRequest) (*adminpb.JoinReply, error) {
	t.Helper()
	var reply *adminpb.JoinReply
	var failure error
	calls := 0
	d.Join(r, func(p *adminpb.JoinReply, err error) { reply, failure = p, err; calls++ })
	if calls != 1 {
		t.Fatalf("done was called %d times", calls)
	}
	return reply, failure
}

func TestAJoinIsRepeatedAfterItsReplyWasLost(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	first, err := join(t, d, joining(100))
	if err != nil || first.GetNodeId() != firstJoinedNode || first.GetClusterId() != 7 {
		t.Fatalf("%v %v", first, err)
	}
	again, err := join(t, d, joining(100))
	if err != nil || again.GetNodeId() != first.GetNodeId() || len(again.GetNodes()) != 1 {
		t.Fatalf("%v %v", again, err)
	}
	other, err := join(t, d, joining(101))
	if err != nil || other.GetNodeId() == first.GetNodeId() || len(other.GetNodes()) != 2 {
		t.Fatalf("%v %v", other, err)
	}
}

// Two drivers that both believe to drive, answers in any order, errors that
// hide whether a swap took place, nodes that ask again and again: every store
// ends with one id, and no id belongs to two stores.
func TestStoresThatJoinInARaceWinOneIDEach(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		kv := newMemKV()
		drivers := []*Driver{activeDriver(t, kv), activeDriver(t, kv)}
		kv.delayed = true
		kv.failing = func() bool { return rng.Float64() < 0.1 }
		won := make(map[uint64]uint64)
		for range 40 {
			for _, d := range drivers {
				store := 100 + rng.Uint64N(5)
				d.Join(joining(store), func(r *adminpb.JoinReply, err error) {
					if err != nil {
						return
					}
					if id := won[store]; id != 0 && id != r.GetNodeId() {
						t.Errorf("seed %d: store %d is n%d and n%d", seed, store, id, r.GetNodeId())
					}
					won[store] = r.GetNodeId()
				})
				d.Step(0)
			}
			kv.deliver(rng)
		}
		kv.failing = nil
		for range 200 {
			kv.deliver(rng)
			drivers[0].Step(0)
			drivers[1].Step(0)
		}
		owner := make(map[uint64]uint64)
		for store, id := range won {
			if other := owner[id]; other != 0 {
				t.Errorf("seed %d: n%d is store %d and store %d", seed, id, store, other)
			}
			owner[id] = store
		}
		fresh := NewDriver(Config{Self: 2, ClusterID: 7, KV: kv})
		kv.delayed = false
		fresh.SetActive(true, 0)
		if len(won) != 5 || fresh.cluster.registered != 5 {
			t.Errorf("seed %d: %d stores won, %d registered", seed, len(won),
				fresh.cluster.registered)
		}
	}
}

func TestIDBlocksNeverOverlap(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		kv := newMemKV()
		drivers := []*Driver{activeDriver(t, kv), activeDriver(t, kv)}
		kv.delayed = true
		kv.failing = func() bool { return rng.Float64() < 0.2 }
		owner := make(map[uint64]int)
		blocks := 0
		for i := range 100 {
			d := drivers[i%2]
			want := uint32(1 + rng.IntN(50))
			d.AllocateIDs(ids.NodeID(1+i%3), want, func(first uint64, count uint32, err error) {
				if err != nil {
					return
				}
				blocks++
				if first < firstFreeRange || count != want {
					t.Errorf("seed %d: %d ids from %d", seed, count, first)
				}
				for id := first; id < first+uint64(count); id++ {
					if _, taken := owner[id]; taken {
						t.Errorf("seed %d: id %d given out twice", seed, id)
					}
					owner[id] = i
				}
			})
			if rng.IntN(20) == 0 {
				d.SetActive(false, 0)
				d.SetActive(true, 0)
			}
			kv.deliver(rng)
			d.Step(0)
		}
		if blocks < 10 {
			t.Errorf("seed %d: only %d blocks", seed, blocks)
		}
	}
}

func TestAHugeWishForIDsIsCutAndNoWishGetsTheDefault(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	d.AllocateIDs(1, 1<<31, func(first uint64, count uint32, err error) {
		if err != nil || first != firstFreeRange || count != MaxIDBlock {
			t.Errorf("%d %d %v", first, count, err)
		}
	})
	d.AllocateIDs(1, 0, func(first uint64, count uint32, err error) {
		if err != nil || first != firstFreeRange+MaxIDBlock || count != DefaultIDBlock {
			t.Errorf("%d %d %v", first, count, err)
		}
	})
}

// Bug class: a member with an empty data directory returns under its old id.
func TestAWipedNodeWithItsOldIDIsRefusedAndToldHowToJoin(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	first, _ := join(t, d, joining(100))
	wiped := joining(999)
	wiped.Node.NodeId = first.GetNodeId()
	_, err := join(t, d, wiped)
	if !errors.Is(err, ErrOtherStore) || !strings.Contains(err.Error(), "--join") {
		t.Fatalf("%v", err)
	}
	// Its reports are not believed either.
	reply := d.Report(0, &metapb.NodeReport{Node: wiped.GetNode(), Full: true, Leaders: 1,
		Facts: []*metapb.RangeFact{{Term: 9, LeaderNode: first.GetNodeId(),
			Descriptor_: &metapb.RangeDescriptor{RangeId: 2, Start: []byte("a"),
				End: []byte("b")}}}})
	if len(d.List(&adminpb.ListRangesRequest{}).GetRanges()) != 0 || len(reply.GetNodes()) != 0 {
		t.Fatal("a store that is not registered was believed")
	}
	// As a new node it is welcome.
	again, err := join(t, d, joining(999))
	if err != nil || again.GetNodeId() == first.GetNodeId() {
		t.Fatalf("%v %v", again, err)
	}
}

func TestJoinsAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	d := activeDriver(t, newMemKV())
	foreign := joining(1)
	foreign.ClusterId = 8
	unknown := joining(1)
	unknown.Node.NodeId = 17
	for _, c := range []struct {
		r    *adminpb.JoinRequest
		want error
	}{
		{foreign, ErrWrongCluster},
		{unknown, ErrUnknownNode},
		{&adminpb.JoinRequest{Node: &metapb.NodeDescriptor{Address: "a:1"}}, ErrBadJoin},
		{&adminpb.JoinRequest{Node: &metapb.NodeDescriptor{StoreId: 1}}, ErrBadJoin},
		{&adminpb.JoinRequest{}, ErrBadJoin},
	} {
		if _, err := join(t, d, c.r); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.r, err, c.want)
		}
	}
	d.SetActive(false, 0)
	if _, err := join(t, d, joining(1)); !errors.Is(err, ErrAskAgain) {
		t.Errorf("inactive: %v", err)
	}
}

func TestOpenRequestsAreToldToAskAgainWhenLeadershipIsLost(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	d := activeDriver(t, kv)
	kv.delayed = true
	answers := 0
	count := func(err error) {
		answers++
		if !errors.Is(err, ErrAskAgain) {
			t.Errorf("%v", err)
		}
	}
	for range maxEdits + 5 { // the last five find the queue full
		d.Join(joining(5), func(_ *adminpb.JoinReply, err error) { count(err) })
	}
	d.AllocateIDs(1, 5, func(_ uint64, _ uint32, err error) { count(err) })
	if answers != 6 {
		t.Fatalf("%d refused, want 6", answers)
	}
	d.SetActive(false, 0)
	if answers != maxEdits+6 {
		t.Fatalf("%d answers", answers)
	}
	kv.deliver(nil) // too late
	kv.delayed = false
	d.SetActive(true, 0)
	kv.deliver(nil)
	if answers != maxEdits+6 || !d.Active() {
		t.Fatalf("%d answers", answers)
	}
}

func TestRange1FailsForAWhile(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	failing := true
	kv.failing = func() bool { return failing }
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: kv})
	d.SetActive(true, 0)
	d.Step(0)
	if d.Active() || !strings.Contains(d.Status(0).GetProblems()[0], "cannot be read") {
		t.Fatalf("%v", d.Status(0))
	}
	failing = false
	d.Step(0)
	d.Step(0)
	if !d.Active() {
		t.Fatal("not active although range 1 answers again")
	}
	failing = true
	var got error
	d.Join(joining(4), func(_ *adminpb.JoinReply, err error) { got = err })
	for range maxEditAttempts + 1 {
		d.Step(0)
	}
	if !errors.Is(got, ErrAskAgain) || len(d.edits.open)+len(d.edits.failed) != 0 {
		t.Fatalf("%v", got)
	}
}

func TestADriverThatIsTooOldForTheClusterDoesNotDrive(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	kv.CompareAndSwap([]byte(versionKey), encodeNumber(ClusterVersion+1), 0, func(bool, error) {})
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: kv})
	d.SetActive(true, 0)
	d.Step(0)
	if d.Active() || !strings.Contains(d.Status(0).GetProblems()[0], "newer") {
		t.Fatalf("%v", d.Status(0))
	}
}

func TestTheFounderRegistersItselfByItsReport(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	d := activeDriver(t, kv)
	founder := &metapb.NodeDescriptor{NodeId: 1, StoreId: 50, Address: "a:1", Life: 1}
	reply := d.Report(0, &metapb.NodeReport{Node: founder, Full: true})
	if len(reply.GetNodes()) != 1 || reply.GetRegistryVersion() == 0 {
		t.Fatalf("%v", reply)
	}
	if other, err := join(t, d, joining(51)); err != nil || other.GetNodeId() != 2 {
		t.Fatalf("%v %v", other, err)
	}
	moved := &metapb.NodeDescriptor{NodeId: 1, StoreId: 50, Address: "b:1", Life: 2}
	if back, err := join(t, d, &adminpb.JoinRequest{Node: moved, ClusterId: 7}); err != nil ||
		back.GetNodeId() != 1 {
		t.Fatalf("%v %v", back, err)
	}
	next := activeDriver(t, kv)
	if a := next.cluster.nodes[1].desc.GetAddress(); a != "b:1" {
		t.Fatalf("address %q", a)
	}
}

func TestANewAddressAfterARestartReachesAllNodes(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	d := activeDriver(t, kv)
	a, _ := join(t, d, joining(100))
	b, _ := join(t, d, joining(101))
	node := func(r *adminpb.JoinReply, store uint64, address string,
		life uint64) *metapb.NodeReport {
		return &metapb.NodeReport{Node: &metapb.NodeDescriptor{
			NodeId: r.GetNodeId(), StoreId: store, Address: address, Life: life}, Full: true}
	}
	for range 5 {
		d.Report(0, node(a, 100, "s100:1", 1))
	}
	if len(d.Report(0, node(a, 100, "s100:1", 1)).GetNodes()) != 0 {
		t.Fatal("nodes sent although nothing changed")
	}
	d.Report(0, node(b, 101, "elsewhere:1", 2))
	if len(d.Report(0, node(b, 101, "s101:1", 1)).GetNodes()) != 0 {
		t.Fatal("a message from an earlier life was answered")
	}
	got := d.Report(0, node(a, 100, "s100:1", 1)).GetNodes()
	if len(got) != 2 || got[1].GetAddress() != "elsewhere:1" {
		t.Fatalf("%v", got)
	}
	if next := activeDriver(t, kv); next.cluster.nodes[ids.NodeID(b.GetNodeId())].desc.
		GetAddress() != "elsewhere:1" {
		t.Fatal("the registry still has the old address")
	}
}

func TestANodeThatAnotherDriverRegisteredIsLookedUp(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	d := activeDriver(t, kv)
	late := activeDriver(t, kv)
	reply, _ := join(t, late, joining(100))
	n := joining(100).GetNode()
	n.NodeId = reply.GetNodeId()
	d.Report(time.Second, &metapb.NodeReport{Node: n, Full: true})
	if got := d.Status(time.Second).GetNodes(); len(got) != 1 || !got[0].GetLive() {
		t.Fatalf("%v", got)
	}
}

func TestALargeRegistryIsReadInPages(t *testing.T) {
	t.Parallel()
	kv := newMemKV()
	for i := range uint64(2*registryPage + 7) {
		desc := &metapb.NodeDescriptor{NodeId: i + 1, StoreId: i + 1, Address: "a:1"}
		value, _ := encodeNode(desc)
		kv.clock++
		kv.rows[string(nodeKey(ids.NodeID(i+1)))] = KeyValue{nodeKey(ids.NodeID(i + 1)), value,
			hlc.Timestamp(kv.clock)}
	}
	d := activeDriver(t, kv)
	if d.cluster.registered != 2*registryPage+7 {
		t.Fatalf("%d nodes", d.cluster.registered)
	}
}
