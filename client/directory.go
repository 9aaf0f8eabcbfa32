package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

const (
	// adminTimeout bounds one unary call to one endpoint. A node may wait 3 s
	// for another one on a caller's behalf.
	adminTimeout = 4 * time.Second
	// openPause is between two rounds over the endpoints.
	openPause = 100 * time.Millisecond
	// maxNodes bounds the addresses that are remembered.
	maxNodes = 4096

	connectTimeout = 1500 * time.Millisecond // below the attempt timeout
	// A node that refuses connections is dialled again this often: a restarted
	// one may lead again soon, and a refused dial costs next to nothing.
	reconnectMin      = 20 * time.Millisecond
	reconnectMax      = 100 * time.Millisecond
	keepaliveTime     = 20 * time.Second
	keepaliveTimeout  = 8 * time.Second
	streamWindowBytes = 4 << 20
	connWindowBytes   = 16 << 20
	socketBufferBytes = 128 << 10
)

// directory knows where nodes are, and holds one connection per address.
type directory struct {
	mu struct {
		sync.Mutex
		endpoints []string              // as given to Open
		nodes     map[ids.NodeID]string // as nodes have told
		conns     map[string]*grpc.ClientConn
		good      string // answered last
		cluster   uint64 // id; 0: not known
		closed    bool
	}
}

// checkEndpoints refuses what cannot be an address.
func checkEndpoints(endpoints []string) ([]string, error) {
	var good []string
	for _, e := range endpoints {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(e); err != nil {
			return nil, &Error{
				Verb: "open", Kind: ErrInvalid,
				Detail: fmt.Sprintf("endpoint %q is not host:port", e),
			}
		}
		if !slices.Contains(good, e) {
			good = append(good, e)
		}
	}
	if len(good) == 0 {
		return nil, &Error{Verb: "open", Kind: ErrInvalid, Detail: "no endpoint given"}
	}
	return good, nil
}

func (d *directory) init(endpoints []string) {
	d.mu.endpoints = endpoints
	d.mu.nodes = make(map[ids.NodeID]string)
	d.mu.conns = make(map[string]*grpc.ClientConn)
}

// learn notes where a node is.
func (d *directory) learn(n *metapb.NodeDescriptor) {
	if n.GetNodeId() == 0 || n.GetAddress() == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	id := ids.NodeID(n.GetNodeId())
	if _, known := d.mu.nodes[id]; known || len(d.mu.nodes) < maxNodes {
		d.mu.nodes[id] = n.GetAddress()
	}
}

// address returns where a node is, "" if that is not known.
func (d *directory) address(n ids.NodeID) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.nodes[n]
}

// meet checks that a node is of the cluster that this client talks to.
func (d *directory) meet(cluster uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.cluster == 0 {
		d.mu.cluster = cluster
	}
	if cluster != 0 && cluster != d.mu.cluster {
		return fmt.Errorf("the node is of another cluster (%016x, not %016x)",
			cluster, d.mu.cluster)
	}
	return nil
}

// clusterID returns the id of the cluster, 0 while unknown.
func (d *directory) clusterID() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.cluster
}

// candidates returns every address there is: first the one that answered last,
// then the endpoints, then the nodes by id.
func (d *directory) candidates() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]string, 0, len(d.mu.endpoints)+len(d.mu.nodes)+1)
	if d.mu.good != "" {
		all = append(all, d.mu.good)
	}
	all = append(all, d.mu.endpoints...)
	nodes := make([]ids.NodeID, 0, len(d.mu.nodes))
	for n := range d.mu.nodes {
		nodes = append(nodes, n)
	}
	slices.Sort(nodes)
	for _, n := range nodes {
		all = append(all, d.mu.nodes[n])
	}
	var unique []string
	for _, a := range all {
		if !slices.Contains(unique, a) {
			unique = append(unique, a)
		}
	}
	return unique
}

// answered remembers which address to ask first next time; "" forgets it.
func (d *directory) answered(addr string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.good = addr
}

// conn returns the connection to an address; it connects when first used.
func (d *directory) conn(addr string, opts []grpc.DialOption) (*grpc.ClientConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.mu.conns[addr]; c != nil {
		return c, nil
	}
	if d.mu.closed {
		return nil, ErrClosed
	}
	c, err := grpc.NewClient("passthrough:///"+addr, append(dialOptions(), opts...)...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	d.mu.conns[addr] = c
	return c, nil
}

// drop closes the connection to an address; the next use makes a new one.
func (d *directory) drop(addr string) {
	d.mu.Lock()
	c := d.mu.conns[addr]
	delete(d.mu.conns, addr)
	d.mu.Unlock()
	if c != nil {
		_ = c.Close() // it was silent; nothing of it is wanted
	}
}

// dialOptions are the defaults, which options given to Open override. Both
// windows are set because one alone turns the adaptive window off and leaves
// the other at 64 KB. Pings go only while a stream is open: nodes allow that.
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithInitialWindowSize(streamWindowBytes),
		grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithReadBufferSize(socketBufferBytes),
		grpc.WithWriteBufferSize(socketBufferBytes),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: reconnectMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax,
			},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: keepaliveTime, Timeout: keepaliveTimeout,
		}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(kv.MaxFrameBytes+frameSlack),
			grpc.MaxCallSendMsgSize(kv.MaxFrameBytes+frameSlack),
		),
	}
}

// frameSlack is what the transport may add to a frame.
const frameSlack = 4 << 10

func (d *directory) close() error {
	d.mu.Lock()
	d.mu.closed = true
	conns := d.mu.conns
	d.mu.conns = nil
	d.mu.Unlock()
	var errs []error
	for _, c := range conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Admin calls f with the Admin service of one endpoint after the other, until
// one of them serves it: for tools that need more than keys and values. An
// endpoint that cannot be reached, or is not ready, is passed over; any other
// error of f is final. It gives up after one round, with an ErrUnavailable that
// names every endpoint and its reason. f gets a context of its own and may run
// several times.
func (c *Client) Admin(
	ctx context.Context, f func(context.Context, adminpb.AdminClient) error,
) error {
	var tried []string
	for _, addr := range c.directory.candidates() {
		err := c.adminAt(ctx, addr, f)
		if err == nil {
			c.directory.answered(addr)
			return nil
		}
		if !passedOver(err) {
			return err
		}
		if ctx.Err() != nil {
			return &Error{
				Verb: "ask " + addr, Kind: ErrUnavailable, Detail: reason(err), Cause: ctx.Err(),
			}
		}
		tried = append(tried, fmt.Sprintf("%s (%s)", addr, reason(err)))
	}
	c.directory.answered("")
	return &Error{
		Verb: "ask the cluster", Kind: ErrUnavailable, Detail: "tried " + strings.Join(tried, ", "),
	}
}

// adminAt calls f with one endpoint.
func (c *Client) adminAt(
	ctx context.Context, addr string, f func(context.Context, adminpb.AdminClient) error,
) error {
	conn, err := c.directory.conn(addr, c.options.dial)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	return f(ctx, adminpb.NewAdminClient(conn))
}

// passedOver says whether another endpoint may do better.
func passedOver(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted:
		return true
	default:
		return false
	}
}

// awaitEndpoint returns when an endpoint has answered. A node answers as soon
// as it runs, also while it cannot serve keys: tools can then ask it why.
func (c *Client) awaitEndpoint(ctx context.Context) error {
	if c.options.openTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.options.openTimeout)
		defer cancel()
	}
	why := make(map[string]string)
	for {
		for _, addr := range c.directory.candidates() {
			err := c.greet(ctx, addr)
			if err == nil {
				c.directory.answered(addr)
				return nil
			}
			if _, seen := why[addr]; !seen || ctx.Err() == nil {
				why[addr] = reason(err)
			}
		}
		select {
		case <-ctx.Done():
			return &Error{
				Verb: "open", Kind: ErrUnavailable, Cause: ctx.Err(),
				Detail: "no endpoint answered: " + c.tried(why),
			}
		case <-time.After(openPause):
		}
	}
}

// tried lists the endpoints and what was wrong with each.
func (c *Client) tried(why map[string]string) string {
	var b []string
	for _, addr := range c.directory.candidates() {
		b = append(b, fmt.Sprintf("%s (%s)", addr, why[addr]))
	}
	return strings.Join(b, ", ")
}

// greet asks an endpoint who it is.
func (c *Client) greet(ctx context.Context, addr string) error {
	return c.adminAt(ctx, addr, func(ctx context.Context, a adminpb.AdminClient) error {
		reply, err := a.Status(ctx, &adminpb.StatusRequest{LocalOnly: true})
		if err != nil {
			return err
		}
		if err := c.directory.meet(reply.GetClusterId()); err != nil {
			return err
		}
		for _, n := range reply.GetNodes() {
			c.directory.learn(n.GetNode())
		}
		return nil
	})
}
