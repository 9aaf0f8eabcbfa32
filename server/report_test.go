package server

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/placement"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// emptyKV is a registry in which nothing stands and every write succeeds.
type emptyKV struct{}

func (emptyKV) Get(_ []byte, done func([]byte, hlc.Timestamp, error)) { done(nil, 0, nil) }

func (emptyKV) Scan(_, _ []byte, _ int, done func([]placement.KeyValue, error)) { done(nil, nil) }

func (emptyKV) CompareAndSwap(_, _ []byte, _ hlc.Timestamp, done func(bool, error)) {
	done(true, nil)
}

func newActiveDriver(t *testing.T) *placement.Driver {
	t.Helper()
	d := placement.NewDriver(placement.Config{Self: 1, ClusterID: 7, KV: emptyKV{}})
	d.SetActive(true, 0)
	return d
}

// ledBy1 are facts of count ranges that tile the keys and that node 1 leads.
func ledBy1(count int) []*metapb.RangeFact {
	key := func(i int) []byte {
		return binary.BigEndian.AppendUint64([]byte{kv.UserPrefix}, uint64(i))
	}
	var facts []*metapb.RangeFact
	for i := range count {
		facts = append(facts, &metapb.RangeFact{Term: 6, LeaderNode: 1,
			Descriptor_: &metapb.RangeDescriptor{RangeId: uint64(i + 2), Start: key(i), End: key(i + 1),
				Generation: 1, Replicas: []*metapb.Replica{{NodeId: 1, ReplicaId: 1}}}})
	}
	return facts
}

const manyFacts = 50_000

func ledRanges(d *placement.Driver) (count int) {
	from := []byte(nil)
	for {
		reply := d.List(&adminpb.ListRangesRequest{Start: from})
		n := len(reply.GetRanges())
		count += n
		if n < placement.MaxList {
			return count
		}
		from = reply.GetRanges()[n-1].GetDescriptor_().GetEnd()
	}
}

func TestAFullReportOfManyRangesComesInPartsAndEndsTheWish(t *testing.T) {
	t.Parallel()
	d := newActiveDriver(t)
	facts := ledBy1(manyFacts)
	var p parts
	for sent := 1; ; sent++ {
		r := &metapb.NodeReport{Node: &metapb.NodeDescriptor{NodeId: 1, StoreId: 9}, Leaders: manyFacts}
		p.fill(r, func() []*metapb.RangeFact { return facts })
		if len(r.GetFacts()) > maxFactsPerReport {
			t.Fatalf("part %d has %d facts", r.GetPart(), len(r.GetFacts()))
		}
		want := d.Report(time.Second, r).GetWantFull()
		p.sent(r, true)
		if want != r.GetMore() {
			t.Fatalf("part %d, more %v: wants full %v", r.GetPart(), r.GetMore(), want)
		}
		if !r.GetMore() {
			if parts := (manyFacts + maxFactsPerReport - 1) / maxFactsPerReport; sent != parts {
				t.Fatalf("%d parts, want %d", sent, parts)
			}
			break
		}
	}
	if n := ledRanges(d); n != manyFacts || p.next != 0 || p.rest != nil {
		t.Fatalf("%d ranges are known, %d parts left", n, p.next)
	}
}

func TestAFullReportOfWhichADriverMissedAPartIsSentAgain(t *testing.T) {
	t.Parallel()
	first, second := newActiveDriver(t), newActiveDriver(t)
	facts := ledBy1(manyFacts)
	var p parts
	send := func(d *placement.Driver, arrives bool) (want bool) {
		r := &metapb.NodeReport{Node: &metapb.NodeDescriptor{NodeId: 1, StoreId: 9}, Leaders: manyFacts}
		p.fill(r, func() []*metapb.RangeFact { return facts })
		want = d.Report(time.Second, r).GetWantFull()
		p.sent(r, arrives)
		return want || r.GetMore()
	}
	send(first, true)
	send(first, true)
	for send(second, true) { // it drives now, and has not heard the beginning
		if p.next == 0 {
			break
		}
	}
	if p.next != 0 || ledRanges(second) == manyFacts {
		t.Fatal("the second driver heard everything")
	}
	send(second, true)
	send(second, false) // the answer is lost
	if p.next != 0 {
		t.Fatalf("goes on with part %d after one that may be lost", p.next)
	}
	for send(second, true) {
	}
	if n := ledRanges(second); n != manyFacts {
		t.Fatalf("%d ranges are known", n)
	}
}

func TestAReportOfFactsWithLongKeysIsCutByItsBytes(t *testing.T) {
	t.Parallel()
	long := make([]byte, 1<<20)
	var facts []*metapb.RangeFact
	for range 10 {
		facts = append(facts, &metapb.RangeFact{Descriptor_: &metapb.RangeDescriptor{Start: long}})
	}
	if n := fitting(facts); n != 4 {
		t.Errorf("%d facts fit, want 4", n)
	}
	facts[0].Descriptor_.Start = make([]byte, 2*maxReportKeyBytes)
	if n := fitting(facts); n != 1 {
		t.Errorf("%d facts fit, want at least and at most the first", n)
	}
	if n := fitting(nil); n != 0 {
		t.Errorf("%d of no facts fit", n)
	}
}
