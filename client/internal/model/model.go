// Package model is a cluster without disks, raft or time: ranges, leaders and
// versions in maps, changed one request at a time. Tests of the client put
// their networks, and their faults, in front of it. What it answers is what a
// node promises (package proto/kv): it redirects, refuses what is beyond a
// range, and finds the identity of a write among the versions of its key.
//
// Each range has a clock of its own, and nothing but requests moves it, so
// clocks are as far apart as the workload makes them.
//
// A Cluster is not safe for concurrent use.
package model

import (
	"bytes"
	"fmt"
	"slices"
	"sort"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Version is one version of a key.
type Version struct {
	At       hlc.Timestamp
	Value    []byte
	Deleted  bool
	Identity kv.Identity
}

// Range is a range: its descriptor, leader and clock.
type Range struct {
	Desc   *metapb.RangeDescriptor
	Leader ids.NodeID
	Clock  hlc.Timestamp
	// Frozen is what its leader answers to everything while the range is to be
	// absorbed by its left neighbour; nil: it serves.
	Frozen *kv.Response
}

// Cluster is the whole state.
type Cluster struct {
	Nodes    int
	Ranges   []*Range
	Keys     map[string][]Version // oldest first
	PageRows int                  // rows of one page, at most
	Applied  map[kv.Identity]int  // how often each write took effect

	nextRange uint64
}

// New makes a cluster of one range, [UserPrefix, EndPrefix), led by node 1.
func New(nodes int) *Cluster {
	c := &Cluster{
		Nodes: nodes, Keys: make(map[string][]Version), PageRows: 100,
		Applied: make(map[kv.Identity]int), nextRange: 3,
	}
	d := &metapb.RangeDescriptor{
		RangeId: 2, Start: []byte{kv.UserPrefix}, End: []byte{kv.EndPrefix}, Generation: 1,
	}
	for n := range nodes {
		d.Replicas = append(d.Replicas, &metapb.Replica{
			NodeId: uint64(n + 1), ReplicaId: uint64(n + 1),
		})
	}
	c.Ranges = []*Range{{Desc: d, Leader: 1, Clock: 1000}}
	return c
}

// Holder returns the range that holds an internal key.
func (c *Cluster) Holder(key []byte) *Range {
	i := sort.Search(len(c.Ranges), func(i int) bool {
		return bytes.Compare(c.Ranges[i].Desc.Start, key) > 0
	})
	if i == 0 {
		return nil
	}
	return c.Ranges[i-1]
}

// Split splits the range of an internal key there; false if it starts there.
func (c *Cluster) Split(key []byte) bool {
	r := c.Holder(key)
	if r == nil || bytes.Equal(r.Desc.Start, key) {
		return false
	}
	left := proto.CloneOf(r.Desc)
	right := proto.CloneOf(r.Desc)
	left.Generation++
	right.Generation++
	left.End, right.Start = key, key
	right.RangeId = c.nextRange
	c.nextRange++
	r.Desc = left
	c.Ranges = append(c.Ranges, &Range{Desc: right, Leader: r.Leader, Clock: r.Clock})
	sort.Slice(c.Ranges, func(i, j int) bool {
		return bytes.Compare(c.Ranges[i].Desc.Start, c.Ranges[j].Desc.Start) < 0
	})
	return true
}

// Merge lets the range that holds an internal key absorb its right neighbour, as
// nodes do it: the descriptor is newer than both, the id is the left one's, and so is
// the leader. False if there is no neighbour.
func (c *Cluster) Merge(key []byte) bool {
	left := c.Holder(key)
	i := slices.Index(c.Ranges, left)
	if left == nil || i+1 == len(c.Ranges) {
		return false
	}
	right := c.Ranges[i+1]
	d := proto.CloneOf(left.Desc)
	d.End, d.Generation = right.Desc.End, max(d.Generation, right.Desc.Generation)+1
	left.Desc, left.Clock, left.Frozen = d, max(left.Clock, right.Clock), nil
	c.Ranges = slices.Delete(c.Ranges, i+1, i+2)
	return true
}

// Handle serves a request at a node.
func (c *Cluster) Handle(node ids.NodeID, r *kv.Request) *kv.Response {
	out := &kv.Response{}
	if r.Verb < kv.VerbGet || r.Verb > kv.VerbReadTimestamp {
		out.Code = kv.CodeUnknownVerb
	} else if rg := c.admit(node, r, out); rg != nil {
		c.serve(rg, r, out)
	}
	out.ID = r.ID
	return out
}

// admit checks that the node leads the range that a request is for.
func (c *Cluster) admit(node ids.NodeID, r *kv.Request, out *kv.Response) *Range {
	key := r.Key
	rg := c.Holder(key)
	span := r.Verb == kv.VerbScan || r.Verb == kv.VerbDeleteRange || r.Verb == kv.VerbReadTimestamp
	switch {
	case rg == nil:
		out.Code, out.Message = kv.CodeInvalid, "key outside the users' space"
	case uint64(rg.Desc.Generation) != uint64(r.Generation) ||
		span && bytes.Compare(r.End, rg.Desc.End) > 0:
		out.Code = kv.CodeWrongRange
		out.Descriptors = c.descriptors(key, r.End)
	case rg.Leader != node:
		out.Code, out.Leader = kv.CodeNotLeader, rg.Leader
	case rg.Frozen != nil:
		if *out = *rg.Frozen; out.Code == kv.CodeNotLeader {
			out.Leader = rg.Leader
		}
	default:
		return rg
	}
	return nil
}

func (c *Cluster) descriptors(start, end []byte) (all [][]byte) {
	for _, rg := range c.Ranges {
		if bytes.Compare(rg.Desc.End, start) > 0 &&
			(bytes.Equal(rg.Desc.Start, c.Holder(start).Desc.Start) ||
				bytes.Compare(rg.Desc.Start, end) < 0) {
			if b, err := proto.Marshal(rg.Desc); err == nil {
				all = append(all, b)
			}
		}
	}
	return all
}

// serve runs an admitted request.
func (c *Cluster) serve(rg *Range, r *kv.Request, out *kv.Response) {
	rg.Clock = max(rg.Clock, r.Timestamp, r.Identity.Floor)
	at := r.Timestamp
	if at == 0 {
		at = rg.Clock
	}
	switch r.Verb {
	case kv.VerbReadTimestamp:
		out.Timestamp = rg.Clock
	case kv.VerbGet:
		if v, ok := c.at(r.Key, at); ok {
			out.Found, out.Value, out.Timestamp = true, v.Value, v.At
		} else {
			out.Code = kv.CodeNotFound
		}
	case kv.VerbScan:
		c.scan(r, at, out)
	case kv.VerbDeleteRange:
		c.deleteRange(rg, r, out)
	case kv.VerbAtomic:
		c.atomic(rg, r, out)
	default:
		op := kv.Op{
			Key: r.Key, Value: r.Value, Expected: r.Expected, Expect: r.Expect,
			ExpectedVersion: r.ExpectedVersion,
			Delete:          r.Verb == kv.VerbDelete || r.Flags&kv.FlagDelete != 0,
		}
		c.write(rg, []kv.Op{op}, r.Identity, out)
	}
}

// at returns the value of a key at a timestamp.
func (c *Cluster) at(key []byte, at hlc.Timestamp) (Version, bool) {
	all := c.Keys[string(key)]
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].At <= at {
			return all[i], !all[i].Deleted
		}
	}
	return Version{}, false
}

// done looks for the identity of a write among the versions of a key.
func (c *Cluster) done(key []byte, id kv.Identity) (Version, bool) {
	for _, v := range c.Keys[string(key)] {
		if v.At > id.Floor && v.Identity == id {
			return v, true
		}
	}
	return Version{}, false
}

// write runs the writes of one request, all or nothing.
func (c *Cluster) write(rg *Range, ops []kv.Op, id kv.Identity, out *kv.Response) {
	if id.Client == 0 || id.Floor == 0 {
		out.Code, out.Message = kv.CodeInternal, fmt.Sprintf("a write without identity: %+v", id)
		return
	}
	for i := range ops {
		if v, again := c.done(ops[i].Key, id); again {
			out.Timestamp = v.At
			return
		}
	}
	newest := rg.Clock
	for i := range ops {
		o := &ops[i]
		v, found := c.at(o.Key, hlc.MaxTimestamp)
		newest = max(newest, v.At)
		if !holds(o, v, found) {
			out.Code, out.Found, out.Value = kv.CodeConflict, found, v.Value
			if found {
				out.Timestamp = v.At
			}
			return
		}
	}
	if len(ops) == 1 && ops[0].Delete {
		if _, found := c.at(ops[0].Key, hlc.MaxTimestamp); !found {
			return // nothing to delete: no entry
		}
	}
	rg.Clock = newest + 1
	for i := range ops {
		o := &ops[i]
		c.Keys[string(o.Key)] = append(c.Keys[string(o.Key)], Version{
			At: rg.Clock, Value: bytes.Clone(o.Value), Deleted: o.Delete, Identity: id,
		})
	}
	c.Applied[id]++
	out.Timestamp = rg.Clock
}

func holds(o *kv.Op, v Version, found bool) bool {
	switch o.Expect {
	case kv.ExpectAbsent:
		return !found
	case kv.ExpectExists:
		return found
	case kv.ExpectValue:
		return found && bytes.Equal(v.Value, o.Expected)
	case kv.ExpectVersion:
		return found && v.At == o.ExpectedVersion
	default:
		return true
	}
}

func (c *Cluster) atomic(rg *Range, r *kv.Request, out *kv.Response) {
	for i := range r.Ops {
		if k := r.Ops[i].Key; c.Holder(k) != rg {
			out.Code = kv.CodeCrossRange
			return
		}
	}
	c.write(rg, r.Ops, r.Identity, out)
}

// inSpan returns the keys of a request's span, in order.
func (c *Cluster) inSpan(r *kv.Request) (keys []string) {
	for k := range c.Keys {
		if k >= string(r.Key) && k < string(r.End) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}

func (c *Cluster) scan(r *kv.Request, at hlc.Timestamp, out *kv.Response) {
	limit := c.PageRows
	if r.Limit != 0 {
		limit = min(limit, int(r.Limit))
	}
	keys := c.inSpan(r)
	reverse := r.Flags&kv.FlagReverse != 0
	if reverse {
		slices.Reverse(keys)
	}
	out.Timestamp = at
	for _, k := range keys {
		v, ok := c.at([]byte(k), at)
		if !ok {
			continue
		}
		if len(out.Rows) == limit {
			last := out.Rows[len(out.Rows)-1].Key
			out.More, out.ResumeKey = true, last
			if !reverse {
				out.ResumeKey = []byte(k)
			}
			return
		}
		row := kv.KeyValue{Key: []byte(k), Version: v.At}
		if r.Flags&kv.FlagKeysOnly == 0 {
			row.Value = v.Value
		}
		out.Rows = append(out.Rows, row)
	}
}

func (c *Cluster) deleteRange(rg *Range, r *kv.Request, out *kv.Response) {
	if r.Timestamp == 0 {
		out.Code, out.Message = kv.CodeInternal, "a range deletion without its timestamp"
		return
	}
	at := max(rg.Clock, r.Timestamp) + 1
	for _, k := range c.inSpan(r) {
		if int(out.Count) == c.PageRows {
			out.More, out.ResumeKey = true, []byte(k)
			break
		}
		v, found := c.at([]byte(k), hlc.MaxTimestamp)
		if !found && v.Identity.Client == r.Identity.Client &&
			v.Identity.Sequence == r.Identity.Sequence {
			out.Count++ // by an earlier attempt
			continue
		}
		if found && v.At <= r.Timestamp {
			c.Keys[k] = append(c.Keys[k], Version{At: at, Deleted: true, Identity: r.Identity})
			out.Count++
		}
	}
	rg.Clock = at
	out.Timestamp = at
}

// Lookup serves a lookup, as package adminpb describes it.
func (c *Cluster) Lookup(r *adminpb.LookupRequest) *adminpb.LookupReply {
	out := &adminpb.LookupReply{}
	for _, rg := range c.Ranges {
		var hit bool
		switch holds := bytes.Compare(rg.Desc.Start, r.Start) <= 0 &&
			bytes.Compare(r.Start, rg.Desc.End) < 0; {
		case r.Reverse:
			hit = bytes.Compare(rg.Desc.Start, r.Start) < 0 &&
				bytes.Compare(r.Start, rg.Desc.End) <= 0
		case len(r.End) == 0:
			hit = holds
		default:
			hit = bytes.Compare(rg.Desc.End, r.Start) > 0 && bytes.Compare(rg.Desc.Start, r.End) < 0
		}
		if hit && (r.Limit == 0 || len(out.Ranges) < int(r.Limit)) {
			out.Ranges = append(out.Ranges, &adminpb.RangeInfo{
				Descriptor_: proto.CloneOf(rg.Desc), LeaderNode: uint64(rg.Leader),
			})
		}
	}
	return out
}
