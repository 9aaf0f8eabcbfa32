package placement

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// Refusals of a join. They do not go away by asking again.
var (
	// ErrWrongCluster says that the node belongs to another cluster.
	ErrWrongCluster = errors.New("join refused: the node belongs to another cluster")
	// ErrOtherStore says that the node id is registered with another store: a
	// directory that was wiped or mixed up must not speak for what it forgot.
	ErrOtherStore = errors.New("join refused: the node id belongs to another store")
	// ErrUnknownNode says that the cluster never gave out this node id.
	ErrUnknownNode = errors.New("the cluster does not know this node id")
	// ErrDecommissioned says that the node was decommissioned: it holds nothing any
	// more, and its id is never used again.
	ErrDecommissioned = fmt.Errorf("join %w: the node was decommissioned", ErrRefused)
	// ErrBadJoin says that the request lacks something.
	ErrBadJoin = errors.New("join refused: incomplete request")
)

const (
	// registryPage is the number of descriptors that a page of the scan reads.
	registryPage = 1000
	// MaxIDBlock is the largest block of range ids; a larger wish gets this.
	MaxIDBlock = 1 << 16
	// DefaultIDBlock is what a wish for 0 ids gets.
	DefaultIDBlock = 64
	// lookupPause is how long an unknown node that reports is left alone.
	lookupPause = 10 * time.Second
)

// load reads the registry page by page, then the cluster version. An error
// leaves it to the next Step.
func (d *Driver) load(start []byte) {
	tenure := d.edits
	d.loading = true
	_, end := nodeSpan()
	d.cfg.KV.Scan(start, end, registryPage, func(rows []KeyValue, err error) {
		if tenure.closed {
			return
		}
		if err == nil {
			err = d.takePage(rows)
		}
		switch {
		case err != nil:
			d.loading = false
			d.trouble = fmt.Sprintf("the registry of nodes cannot be read: %v", err)
		case len(rows) >= registryPage:
			last := rows[len(rows)-1].Key
			d.load(append(append([]byte(nil), last...), 0))
		default:
			d.readAll(func(err error) {
				if err != nil {
					d.loading = false
					d.trouble = fmt.Sprintf("what placement is to do cannot be read: %v", err)
					return
				}
				d.checkVersion()
			})
		}
	})
}

func (d *Driver) takePage(rows []KeyValue) error {
	for _, row := range rows {
		desc, err := decodeNode(row.Key, row.Value)
		if err != nil {
			return err
		}
		d.cluster.register(desc, row.Version)
	}
	return nil
}

// checkVersion reads the cluster version, or writes it into a new cluster. A
// driver that does not understand the version must not act.
func (d *Driver) checkVersion() {
	d.edits.start(&edit{
		key: []byte(versionKey),
		decide: func(_ []byte, version hlc.Timestamp) ([]byte, bool, error) {
			return encodeNumber(ClusterVersion), version == 0, nil
		},
		done: func(value []byte, _ hlc.Timestamp, err error) {
			var version uint64
			if err == nil {
				version, err = decodeNumber([]byte(versionKey), value)
			}
			switch {
			case err != nil:
				d.loading = false
				d.trouble = fmt.Sprintf("the cluster version cannot be read: %v", err)
			case version > ClusterVersion:
				d.trouble = fmt.Sprintf("cluster version %d is newer than this node's %d: "+
					"placement waits for a newer node", version, ClusterVersion)
			default:
				d.loaded, d.trouble = true, ""
				d.log.Info("placement drives", "node", uint64(d.cfg.Self),
					"nodes", d.cluster.registered)
			}
		},
	})
}

// Join registers a node: a new store wins a node id by compare-and-swap on its
// store id, a known one confirms its id and may bring new addresses. Repeating
// a join is harmless, also when the reply to the first was lost. done is called
// once, possibly before Join returns; see ErrAskAgain, ErrWrongCluster,
// ErrOtherStore, ErrUnknownNode, ErrDecommissioned, ErrBadJoin.
func (d *Driver) Join(r *adminpb.JoinRequest, done func(*adminpb.JoinReply, error)) {
	n := r.GetNode()
	switch {
	case !d.Active():
		done(nil, fmt.Errorf("%w: this node does not drive placement", ErrAskAgain))
	case r.GetClusterId() != 0 && r.GetClusterId() != d.cfg.ClusterID:
		done(nil, fmt.Errorf("%w: it is of cluster %016x, this is %016x; "+
			"give it the addresses of its own cluster, or an empty data directory",
			ErrWrongCluster, r.GetClusterId(), d.cfg.ClusterID))
	case n.GetStoreId() == 0 || n.GetAddress() == "":
		done(nil, fmt.Errorf("%w: it needs a store id and an address", ErrBadJoin))
	case n.GetNodeId() != 0:
		d.rejoin(n, done)
	default:
		d.findStore(n, done)
	}
}

// findStore looks whether the store has won a node id already.
func (d *Driver) findStore(n *metapb.NodeDescriptor, done func(*adminpb.JoinReply, error)) {
	key := storeKey(n.GetStoreId())
	d.edits.start(&edit{
		key: key,
		decide: func([]byte, hlc.Timestamp) ([]byte, bool, error) {
			return nil, false, nil
		},
		done: func(value []byte, version hlc.Timestamp, err error) {
			switch {
			case err != nil:
				done(nil, err)
			case version != 0:
				d.won(n, key, value, done)
			default:
				d.take(nodesKey, firstJoinedNode, 1, func(id uint64, err error) {
					if err != nil {
						done(nil, err)
						return
					}
					d.claim(n, id, done)
				})
			}
		},
	})
}

// claim writes the id for the store unless another attempt of the same store
// was faster; then that id counts and this one stays unused for ever.
func (d *Driver) claim(n *metapb.NodeDescriptor, id uint64,
	done func(*adminpb.JoinReply, error)) {
	key := storeKey(n.GetStoreId())
	d.edits.start(&edit{
		key: key,
		decide: func(_ []byte, version hlc.Timestamp) ([]byte, bool, error) {
			return encodeNumber(id), version == 0, nil
		},
		done: func(value []byte, _ hlc.Timestamp, err error) {
			if err != nil {
				done(nil, err)
				return
			}
			d.won(n, key, value, done)
		},
	})
}

// won goes on with the node id that the store has won.
func (d *Driver) won(n *metapb.NodeDescriptor, key, value []byte,
	done func(*adminpb.JoinReply, error)) {
	id, err := decodeNumber(key, value)
	if err != nil {
		done(nil, err)
		return
	}
	if err := d.departed(ids.NodeID(id)); err != nil {
		done(nil, err)
		return
	}
	n = proto.CloneOf(n)
	n.NodeId = id
	d.describe(n, true, func(err error) { d.welcome(ids.NodeID(id), err, done) })
}

// rejoin confirms a node that brings an id. Only the founder of a cluster has
// one that no join gave out: ranges.Bootstrap made it.
func (d *Driver) rejoin(n *metapb.NodeDescriptor, done func(*adminpb.JoinReply, error)) {
	id := ids.NodeID(n.GetNodeId())
	if err := d.departed(id); err != nil {
		done(nil, err)
		return
	}
	finish := func(err error) { d.welcome(id, err, done) }
	if id == founderNode {
		d.claimFounder(n, finish)
		return
	}
	d.describe(n, false, finish)
}

// departed refuses a node that was decommissioned.
func (d *Driver) departed(id ids.NodeID) error {
	if n := d.cluster.nodes[id]; n == nil || !n.gone() {
		return nil
	}
	return fmt.Errorf("%w: %v holds nothing any more, and others have taken its place: start it "+
		"with an empty data directory and --join to add it as a new node", ErrDecommissioned, id)
}

// claimFounder registers node 1. Its descriptor first: that is what decides
// whose the id is. The store's key follows, so that a repeated join finds it.
func (d *Driver) claimFounder(n *metapb.NodeDescriptor, done func(error)) {
	d.describe(n, true, func(err error) {
		if err != nil {
			done(err)
			return
		}
		d.edits.start(&edit{
			key: storeKey(n.GetStoreId()),
			decide: func(_ []byte, version hlc.Timestamp) ([]byte, bool, error) {
				return encodeNumber(n.GetNodeId()), version == 0, nil
			},
			done: func(_ []byte, _ hlc.Timestamp, err error) { done(err) },
		})
	})
}

// describe writes a node's descriptor if it says anything new: created if
// create allows it, never over that of another store, never back to an earlier
// life.
func (d *Driver) describe(n *metapb.NodeDescriptor, create bool, done func(error)) {
	id := ids.NodeID(n.GetNodeId())
	key := nodeKey(id)
	d.edits.start(&edit{
		key: key,
		decide: func(old []byte, version hlc.Timestamp) ([]byte, bool, error) {
			if version == 0 {
				if !create {
					return nil, false, fmt.Errorf("join refused: %w: %v; start it with an empty data "+
						"directory and --join to add it as a new node", ErrUnknownNode, id)
				}
				next, err := encodeNode(n)
				return next, true, err
			}
			known, err := decodeNode(key, old)
			if err != nil {
				return nil, false, err
			}
			if err := sameStore(known, n); err != nil {
				return nil, false, err
			}
			if !news(known, n) {
				return nil, false, nil
			}
			next, err := encodeNode(n)
			return next, true, err
		},
		done: func(value []byte, version hlc.Timestamp, err error) {
			if err == nil {
				var known *metapb.NodeDescriptor
				if known, err = decodeNode(key, value); err == nil {
					d.cluster.register(known, version)
				}
			}
			done(err)
		},
	})
}

// news says whether n tells more than is known. A message from an earlier life
// of the node does not; one that names no life (0) cannot be placed.
func news(known, n *metapb.NodeDescriptor) bool {
	return n.GetLife() >= known.GetLife() && !proto.Equal(known, n)
}

// sameStore refuses a node that comes with another store than the one which won
// its id: its votes and promises are on that one.
func sameStore(known, n *metapb.NodeDescriptor) error {
	if known.GetStoreId() == n.GetStoreId() {
		return nil
	}
	return fmt.Errorf("%w: n%d is registered with store %016x, this is store %016x; a node that "+
		"lost its data cannot come back under its old id, for it forgot its votes: start it "+
		"with an empty data directory and --join, and it gets a new id", ErrOtherStore,
		n.GetNodeId(), known.GetStoreId(), n.GetStoreId())
}

func (d *Driver) welcome(id ids.NodeID, err error, done func(*adminpb.JoinReply, error)) {
	if err != nil {
		done(nil, err)
		return
	}
	done(&adminpb.JoinReply{
		ClusterId:   d.cfg.ClusterID,
		NodeId:      uint64(id),
		Nodes:       d.cluster.descriptors(),
		SystemRange: d.systemRange(),
	}, nil)
}

// AllocateIDs hands out a block of range ids that nobody else gets, at most
// MaxIDBlock, for node n. done is called once, possibly before AllocateIDs
// returns; ErrAskAgain if not now. A block whose reply is lost stays unused.
func (d *Driver) AllocateIDs(n ids.NodeID, count uint32,
	done func(first uint64, count uint32, err error)) {
	if !d.Active() {
		done(0, 0, fmt.Errorf("%w: this node does not drive placement", ErrAskAgain))
		return
	}
	if count == 0 {
		count = DefaultIDBlock
	}
	count = min(count, MaxIDBlock)
	d.take(rangesKey, firstFreeRange, uint64(count), func(first uint64, err error) {
		if err != nil {
			done(0, 0, fmt.Errorf("allocate range ids for %v: %w", n, err))
			return
		}
		done(first, count, nil)
	})
}

// take advances a counter that begins at least at begin, and yields its former
// value. A swap whose outcome is unknown is followed by a new one, so numbers
// can be lost but never given out twice.
func (d *Driver) take(counter string, begin, count uint64, done func(uint64, error)) {
	var first uint64
	d.edits.start(&edit{
		key:  []byte(counter),
		once: true,
		decide: func(old []byte, version hlc.Timestamp) ([]byte, bool, error) {
			first = begin
			if version != 0 {
				var err error
				if first, err = decodeNumber([]byte(counter), old); err != nil {
					return nil, false, err
				}
			}
			if first+count < first {
				return nil, false, fmt.Errorf("take %d from %q: all numbers are used",
					count, counter)
			}
			return encodeNumber(first + count), true, nil
		},
		done: func(_ []byte, _ hlc.Timestamp, err error) { done(first, err) },
	})
}

// descriptors returns all registered nodes by id.
func (c *cluster) descriptors() []*metapb.NodeDescriptor {
	var all []*metapb.NodeDescriptor
	for _, id := range c.order {
		if n := c.nodes[id]; n.desc != nil && !n.gone() {
			all = append(all, n.desc)
		}
	}
	return all
}
