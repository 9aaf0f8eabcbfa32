package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/ranges"
	"github.com/flotilla-kv/flotilla/store"
)

// registryRecord is the node-local record that holds the registry, a
// marshalled adminpb.JoinReply.
const registryRecord = "registry"

// founder is the node that creates a cluster.
const founder = ids.NodeID(1)

// How a node came to its identity, as Info and the start block say it.
const (
	originInitialised = "initialised a new cluster"
	originJoined      = "joined the cluster"
	originRestarted   = "restarted"
)

// openStore opens the store and checks that it is the expected one. Only a
// node that may get an identity makes a store: a mistyped --data must not
// become an empty node.
//
// The store's own clock leaves suspend out: a disk that slept does not hang.
func openStore(cfg Config, monotonic func() time.Duration) (*store.Store, error) {
	st, err := store.Open(store.Options{
		Dir:          cfg.Data,
		Create:       cfg.Init || len(cfg.Join) > 0,
		CacheBytes:   cfg.CacheBytes,
		ReserveBytes: cfg.ReserveBytes,
		Logger:       cfg.Logger,
		Monotonic:    monotonic,
	})
	if err != nil {
		return nil, err
	}
	if err := checkIdentity(cfg, st); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	return st, nil
}

// checkIdentity refuses a directory that is not what the flags say.
func checkIdentity(cfg Config, st *store.Store) error {
	if err := checkDiverged(cfg, st); err != nil {
		return err
	}
	rec := st.Identity().Record()
	switch {
	case rec.ClusterID != 0 && cfg.Cluster != 0 && rec.ClusterID != cfg.Cluster:
		return fmt.Errorf("data directory %q belongs to cluster %016x, not to %016x: "+
			"give --data the directory of this cluster, or --cluster %016x",
			cfg.Data, rec.ClusterID, cfg.Cluster, rec.ClusterID)
	case rec.ClusterID != 0 && cfg.Node != 0 && rec.Node != cfg.Node:
		return fmt.Errorf("data directory %q belongs to %v, not to %v: "+
			"give --data the directory of %v, or --node %d",
			cfg.Data, rec.Node, cfg.Node, cfg.Node, uint64(rec.Node))
	case rec.ClusterID != 0 || cfg.Init:
		return nil
	}
	begun, err := st.State().Replicas()
	if err != nil {
		return fmt.Errorf("read replicas of %q: %w", cfg.Data, err)
	}
	switch {
	case len(begun) > 0:
		// A crash between the ranges and the identity: joining would bring the
		// first ranges of a cluster that never was into another.
		return fmt.Errorf("data directory %q began to initialise a cluster and did not finish: "+
			"start with --init to finish it, or remove the directory to join another", cfg.Data)
	case len(cfg.Join) == 0:
		return fmt.Errorf("data directory %q belongs to no cluster yet: start with "+
			"--join HOST:PORT to join one, or with --init to create one", cfg.Data)
	}
	return nil
}

// membership is what a node knows of itself and the others at its start.
type membership struct {
	cluster uint64
	node    ids.NodeID
	origin  string
	known   *adminpb.JoinReply // nodes and system range, as last heard
}

// boot finds out who this node is, which may take until the cluster answers, and
// then what time it is (clockcheck.go). From the moment on at which the node knows
// who it is until stopStarting is called it answers others that ask for the time.
func (s *Server) boot(ctx context.Context) (*membership, error) {
	rec := s.store.Identity().Record()
	if rec.ClusterID != 0 {
		s.clocks.begin(rec.ClusterID, rec.Node, rec.Bound)
		if err := s.serveStarting(); err != nil {
			return nil, err
		}
	}
	m, err := s.identify(ctx)
	if err != nil {
		return nil, err
	}
	s.clocks.begin(m.cluster, m.node, rec.Bound)
	if err := s.serveStarting(); err != nil {
		return nil, err
	}
	if err := s.clocks.settle(ctx, m.known.GetNodes()); err != nil {
		return nil, err
	}
	return m, nil
}

// identify finds out who this node is.
//
// Every crash point of a new cluster: before Bootstrap has committed, the next
// --init begins anew; after it and before the identity record, --init goes on
// (Bootstrap is idempotent, and the cluster id was seen by nobody, so a new one
// may be drawn) and everything else is refused by checkIdentity; after the
// record, the directory is an ordinary restarted node. Joining: the registry
// record is written first and means nothing without the identity, which is the
// point of no return; the cluster answers a repeated join with the same id.
func (s *Server) identify(ctx context.Context) (*membership, error) {
	rec := s.store.Identity().Record()
	if rec.ClusterID != 0 {
		known, err := loadRegistry(s.store)
		if err != nil {
			return nil, err
		}
		if err := s.checkSeeds(ctx); err != nil {
			return nil, err
		}
		return &membership{rec.ClusterID, rec.Node, originRestarted, known}, nil
	}
	if !s.cfg.Init {
		return s.join(ctx)
	}
	begun, err := s.store.State().Replicas()
	if err != nil {
		return nil, fmt.Errorf("read replicas: %w", err)
	}
	if len(begun) == 0 && len(s.cfg.Join) > 0 {
		return s.joinOrFound(ctx)
	}
	return s.found()
}

// joinOrFound is for a first node with an empty directory that was told of
// others: one that lost its directory and is started as before must not found a
// second cluster beside the one that still lives. It founds only when every
// address says that nobody is there: the port refuses, or a node waits there
// itself. An address that is silent, or whose node cannot answer yet, may belong
// to a cluster; the node waits for it, however long. What remains is a cluster
// of which no process runs at that moment.
//
// It does not answer on its own port meanwhile: of two nodes that are both told
// to found and to ask the other, neither may take the other for waiting.
func (s *Server) joinOrFound(ctx context.Context) (*membership, error) {
	for {
		r, err := s.askAll(ctx)
		switch {
		case err != nil || r.reply != nil:
			return s.joined(r.reply, err)
		case !r.unsure:
			return s.found()
		}
		s.notice.say("waiting: --init creates no cluster while one of --join may have one " +
			"(only one node is started with --init); tried " + strings.Join(r.tried, ", "))
		pause(ctx, joinEvery)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// found creates a cluster in the store.
func (s *Server) found() (*membership, error) {
	if err := ranges.Bootstrap(s.store, founder); err != nil {
		return nil, fmt.Errorf("create the first ranges: %w", err)
	}
	cluster := s.cfg.Cluster
	for cluster == 0 {
		cluster = rand.Uint64()
	}
	if err := s.store.Identity().Join(cluster, founder); err != nil {
		return nil, fmt.Errorf("create the cluster: %w", err)
	}
	return &membership{cluster, founder, originInitialised, &adminpb.JoinReply{}}, nil
}

// joined makes the answer to a join durable.
func (s *Server) joined(reply *adminpb.JoinReply, err error) (*membership, error) {
	if err != nil {
		return nil, err
	}
	cluster, node := reply.GetClusterId(), ids.NodeID(reply.GetNodeId())
	if s.cfg.Cluster != 0 && s.cfg.Cluster != cluster {
		return nil, fmt.Errorf("the nodes of --join belong to cluster %016x, not to %016x: "+
			"correct --join or --cluster", cluster, s.cfg.Cluster)
	}
	known := &adminpb.JoinReply{Nodes: reply.GetNodes(), SystemRange: reply.GetSystemRange()}
	data, err := proto.Marshal(known)
	if err != nil {
		return nil, fmt.Errorf("encode the node registry: %w", err)
	}
	if err := saveRegistry(s.store, data); err != nil {
		return nil, err
	}
	if err := s.store.Identity().Join(cluster, node); err != nil {
		return nil, fmt.Errorf("join cluster %016x as %v: %w", cluster, node, err)
	}
	return &membership{cluster, node, originJoined, known}, nil
}

func loadRegistry(st *store.Store) (*adminpb.JoinReply, error) {
	data, err := st.State().GetLocal(registryRecord)
	if err != nil {
		return nil, fmt.Errorf("read the node registry: %w", err)
	}
	known := &adminpb.JoinReply{}
	if err := proto.Unmarshal(data, known); err != nil {
		return nil, fmt.Errorf("decode the node registry: %w", err)
	}
	return known, nil
}

// saveRegistry blocks for an fsync.
func saveRegistry(st *store.Store, data []byte) error {
	b := st.NewBatch()
	defer b.Close()
	if err := st.State().PutLocal(b, registryRecord, data); err != nil {
		return fmt.Errorf("write the node registry: %w", err)
	}
	pending, err := st.CommitSync(b)
	if err == nil {
		err = pending.Wait()
	}
	if err != nil {
		return fmt.Errorf("write the node registry: %w", err)
	}
	return nil
}

// descriptor is this node as it introduces itself.
func (s *Server) descriptor(node ids.NodeID) *metapb.NodeDescriptor {
	rec := s.store.Identity().Record()
	return &metapb.NodeDescriptor{
		NodeId:      uint64(node),
		StoreId:     rec.StoreID,
		Address:     s.advertise,
		HttpAddress: s.httpLn.Addr().String(),
		Locality:    s.cfg.Locality,
		Life:        uint64(rec.Life),
	}
}
