package placement

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	benchRanges = 100_000
	benchNodes  = 100
)

func benchFact(nodes, i, generation, term uint64) *metapb.RangeFact {
	key := func(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{0x20}, n) }
	f := &metapb.RangeFact{Term: term, Descriptor_: &metapb.RangeDescriptor{
		RangeId: i + 2, Start: key(i), End: key(i + 1), Generation: generation}}
	for j := range uint64(3) {
		f.Descriptor_.Replicas = append(f.Descriptor_.Replicas, voter(1+(i+j)%nodes, j+1))
	}
	f.LeaderNode = 1 + i%nodes
	return f
}

// benchDriver returns a driver at rest, and the reports that keep it there.
func benchDriver(b *testing.B, nodes, ranges uint64) (*Driver, []*metapb.NodeReport) {
	kv := newMemKV()
	d := NewDriver(Config{Self: 1, ClusterID: 7, KV: kv})
	d.SetActive(true, 0)
	var reports []*metapb.NodeReport
	for n := range nodes {
		desc := &metapb.NodeDescriptor{NodeId: n + 1, StoreId: n + 1, Address: "a:1"}
		d.cluster.register(desc, 1)
		reports = append(reports, &metapb.NodeReport{Node: desc, Full: true})
	}
	for i := range ranges {
		r := reports[i%nodes]
		r.Facts = append(r.Facts, benchFact(nodes, i, 1, 1))
		r.Leaders++
	}
	for _, r := range reports {
		d.Report(0, r)
		r.Facts, r.Full = nil, false
	}
	for now := time.Duration(0); now < time.Minute; now += time.Second {
		for _, r := range reports {
			d.Report(now, r)
		}
		d.Step(now)
	}
	if d.cluster.ops.Len() != 0 || d.cluster.dir.gaps() != 2 {
		b.Fatalf("not at rest: %v", d.Status(time.Minute))
	}
	return d, reports
}

func BenchmarkReportOfOneFact(b *testing.B) {
	d, reports := benchDriver(b, benchNodes, benchRanges)
	b.ReportAllocs()
	i := uint64(0)
	for b.Loop() {
		at := i * 7919 % benchRanges
		r := reports[at%benchNodes]
		r.Facts = []*metapb.RangeFact{benchFact(benchNodes, at, 2+i/benchRanges, 1)}
		d.Report(time.Minute, r)
		i++
	}
}

func BenchmarkStepAtRest(b *testing.B) {
	d, _ := benchDriver(b, benchNodes, benchRanges)
	b.ReportAllocs()
	for b.Loop() {
		d.Step(time.Minute)
	}
}

// A step whose nodes have just reported walks the nodes at most once in
// SuspectAfter: this one does, each time.
func BenchmarkStepThatLooksAtNodes(b *testing.B) {
	d, _ := benchDriver(b, benchNodes, benchRanges)
	b.ReportAllocs()
	for b.Loop() {
		d.cluster.nextPhase = 0
		d.Step(time.Minute)
	}
}

func BenchmarkStepAfterANodeDied(b *testing.B) {
	d, _ := benchDriver(b, benchNodes, benchRanges)
	n := d.cluster.nodes[ids.NodeID(5)]
	b.ReportAllocs()
	for b.Loop() {
		n.lastReport -= 2 * defaultSuspectAfter
		d.cluster.rephase(n)
		d.cluster.reviewSome()
		n.lastReport += 2 * defaultSuspectAfter
		d.cluster.rephase(n)
		d.cluster.reviewSome()
	}
}

// The cluster of three with fifty thousand ranges: every node holds all of them.
const (
	denseNodes  = 3
	denseRanges = 50_000
)

func BenchmarkStepAtRestOfDenseNodes(b *testing.B) {
	d, reports := benchDriver(b, denseNodes, denseRanges)
	b.ReportAllocs()
	now := time.Minute
	for b.Loop() { // a second in the life of an idle cluster: reports that tell nothing new
		now += time.Second
		for _, r := range reports {
			d.Report(now, r)
		}
		for range 4 {
			d.Step(now)
		}
	}
}

// BenchmarkReportOfADenseNode is what the driver does at once for one part of a
// full report.
func BenchmarkReportOfADenseNode(b *testing.B) {
	const part = 8192
	d, reports := benchDriver(b, denseNodes, denseRanges)
	b.ReportAllocs()
	generation := uint64(1)
	for b.Loop() {
		generation++
		r := reports[0]
		r.Full, r.Facts = true, nil
		for i := range uint64(part) {
			r.Facts = append(r.Facts, benchFact(denseNodes, i*denseNodes, generation, 1))
		}
		d.Report(time.Minute, r)
	}
}

func BenchmarkADenseNodeDied(b *testing.B) {
	d, _ := benchDriver(b, denseNodes, denseRanges)
	n := d.cluster.nodes[ids.NodeID(2)]
	b.ReportAllocs()
	for b.Loop() {
		n.lastReport -= 2 * defaultSuspectAfter
		d.cluster.rephase(n)
		d.plan()
		n.lastReport += 2 * defaultSuspectAfter
		d.cluster.rephase(n)
		d.plan()
	}
}
