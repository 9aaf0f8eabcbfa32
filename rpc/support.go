package rpc

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/support"
)

// Support travels in datagrams, one for each request and one for each grant.
//
// A promise must not end because a node is busy. On a stream of grpc a request
// passes five goroutines of two saturated processes before it counts, and each
// waits for its turn: with 300 ranges and 512 clients on two cores promises of
// 250 ms ran out within a minute, and an idle pair cost 15 wake-ups an exchange
// (measured). Here one goroutine writes and one reads. A datagram that is lost is
// followed by another in an interval, none waits behind one that was lost, and
// after a partition there is no back-off of TCP to sit out.
//
// Nobody is greeted before: each datagram names the cluster, its receiver and its
// sender's life and mark. The first one of a life is told to Config.Met, as a
// hello is, and heard when Met has agreed.

// Pace and bounds of support.
const (
	// askedPart: rounds that reads ask for follow one another at this part of the
	// interval at the soonest. A node whose clock is behind would ask all the time.
	askedPart = 10
	// addressAge is how long a resolved address is used before it is looked up
	// again, beside the datagrams that go on to the old one.
	addressAge = 5 * time.Second
	// maxErrands bounds the lookups, and the introductions, that wait for their
	// goroutine; more are dropped, and come again with the next datagram.
	maxErrands = 256
	// maxSupportPeers bounds the nodes that are known, as package support does;
	// datagrams of further ones are refused.
	maxSupportPeers = 4096
	// maxDatagram is more than any support datagram has.
	maxDatagram = 512
	// lookupPatience is how long a name server may take.
	lookupPatience = 2 * time.Second
	// readPause follows a failed read, so that a broken socket does not spin.
	readPause = 10 * time.Millisecond
)

// supports is what this package needs of *support.Table.
type supports interface {
	Wanted() []ids.NodeID
	Request(to ids.NodeID) (support.Request, bool)
	HandleRequest(from ids.NodeID, r support.Request) (support.Grant, bool)
	HandleGrant(from ids.NodeID, g support.Grant)
	Asked() <-chan struct{}
}

// supporter is the transport's side of support.
type supporter struct {
	t        *Transport
	conn     *net.UDPConn
	cluster  uint64
	life     uint64
	mark     uint64
	meetings chan func(context.Context) // may wait for the disk
	lookups  chan func(context.Context) // may wait for a name server

	mu    sync.Mutex
	peers map[ids.NodeID]*supportPeer
}

// supportPeer is what is known of the way to one node. Guarded by supporter.mu.
type supportPeer struct {
	name string // as Resolve said; addr belongs to it
	addr netip.AddrPort
	due  bool // to be looked up again: addressAge has passed

	life, mark uint64 // as met; life 0: not met
	meeting    bool
	verdict    string // why the last one was refused, told once
}

func newSupporter(t *Transport) *supporter {
	h := t.cfg.Hello()
	return &supporter{
		t: t, conn: t.cfg.SupportConn,
		cluster: h.GetClusterId(), life: h.GetLife(), mark: h.GetMark(),
		meetings: make(chan func(context.Context), maxErrands),
		lookups:  make(chan func(context.Context), maxErrands),
		peers:    make(map[ids.NodeID]*supportPeer),
	}
}

// run asks, answers and listens until ctx ends; it closes the socket.
func (s *supporter) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { s.ask(ctx) })
	wg.Go(func() { s.askWhenTold(ctx) })
	wg.Go(func() { runErrands(ctx, s.meetings) })
	wg.Go(func() { runErrands(ctx, s.lookups) })
	wg.Go(func() { s.refresh(ctx) })
	wg.Go(func() { s.listen(ctx) })
	<-ctx.Done()
	_ = s.conn.Close() // ends the listener
	wg.Wait()
}

// ask makes one round of requests in every interval.
func (s *supporter) ask(ctx context.Context) {
	for ctx.Err() == nil {
		s.round()
		s.t.cfg.Pause(ctx, s.t.cfg.SupportInterval)
	}
}

// askWhenTold makes a round when a read has asked for it.
func (s *supporter) askWhenTold(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.t.support.Asked():
		}
		s.round()
		s.t.cfg.Pause(ctx, s.t.cfg.SupportInterval/askedPart)
	}
}

// round sends a request to every wanted node. Each is composed right before it is
// written: its time counts from there (R4), and its ceiling is the newest.
func (s *supporter) round() {
	buf := make([]byte, 0, maxDatagram)
	for _, n := range s.t.support.Wanted() {
		addr, ok := s.address(n)
		if !ok || !s.t.reaches(n) {
			continue
		}
		r, ok := s.t.support.Request(n)
		if !ok {
			continue
		}
		frame := s.begin(buf[:0], kindRequest, n)
		if s.send(appendRequest(frame, r), addr) {
			s.t.metrics.supportSent.Add(1)
		}
	}
}

// begin begins a datagram: a frame whose payload opens with who it is for and
// which process it comes from.
func (s *supporter) begin(buf []byte, k kind, to ids.NodeID) []byte {
	return appendFields(beginFrame(buf, k, s.t.cfg.Self), s.cluster, uint64(to), s.life, s.mark)
}

// send seals and writes a datagram. A failure (an interface that is down, a full
// buffer) is like a loss: counted, and the next round tries again.
func (s *supporter) send(frame []byte, to netip.AddrPort) bool {
	_, err := s.conn.WriteToUDPAddrPort(sealFrame(frame, s.t.cfg.Clock.Peek()), to)
	if err != nil {
		s.t.metrics.supportUnsent.Add(1)
	}
	return err == nil
}

// listen handles what comes, each datagram to its end before the next one is
// read: nothing queues but in the socket.
func (s *supporter) listen(ctx context.Context) {
	in, out := make([]byte, maxDatagram), make([]byte, 0, maxDatagram)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(in)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.t.cfg.Pause(ctx, readPause)
		default:
			if err := s.handle(in[:n], from, out); err != nil {
				s.t.metrics.supportRefused.Add(1)
				s.t.cfg.Logger.Debug("support datagram refused", "address", from, "error", err)
			}
		}
	}
}

// handle takes one datagram; an error says why it was not heard.
func (s *supporter) handle(data []byte, src netip.AddrPort, out []byte) error {
	env, err := openFrame(data)
	if err != nil {
		return err
	}
	if len(env.payload) < introductionBytes {
		return fmt.Errorf("%w: %d bytes of payload", errCorrupt, len(env.payload))
	}
	head, body := env.payload[:introductionBytes], env.payload[introductionBytes:]
	switch {
	case field(head, 0) != s.cluster:
		return fmt.Errorf("it belongs to cluster %016x, this node to %016x", field(head, 0), s.cluster)
	case ids.NodeID(field(head, 1)) != s.t.cfg.Self || env.from == s.t.cfg.Self || env.from == 0:
		return fmt.Errorf("it goes from %v to n%d, this is %v", env.from, field(head, 1), s.t.cfg.Self)
	case !s.known(env.from, field(head, 2), field(head, 3)):
		return s.introduce(env.from, field(head, 2), field(head, 3), bytes.Clone(data), src)
	}
	// R9f: the clock stands above all that the sender has served before anything
	// of the datagram is handled, or nothing of it is.
	if err := s.t.adopt(env); err != nil {
		return err
	}
	switch env.kind {
	case kindRequest:
		return s.answer(env.from, field(head, 2), body, src, out)
	case kindGrant:
		g, err := decodeGrant(body)
		if err == nil {
			s.t.support.HandleGrant(env.from, g)
		}
		return err
	}
	return fmt.Errorf("%w: kind %d in a datagram", errCorrupt, env.kind)
}

func (s *supporter) answer(
	from ids.NodeID, life uint64, body []byte, src netip.AddrPort, out []byte,
) error {
	r, err := decodeRequest(body)
	if err != nil {
		return err
	}
	if uint64(r.Life) != life {
		return fmt.Errorf("%w: a request of life %d from life %d", errCorrupt, r.Life, life)
	}
	if !s.t.reaches(from) {
		return nil
	}
	g, ok := s.t.support.HandleRequest(from, r)
	if !ok {
		return nil
	}
	if s.send(appendGrant(s.begin(out, kindGrant, from), g), src) {
		s.t.metrics.supportAnswered.Add(1)
	}
	return nil
}

// known says whether a process was met.
func (s *supporter) known(n ids.NodeID, life, mark uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[n]
	return p != nil && p.life == life && p.mark == mark && life != 0
}

// introduce has a process met, off this goroutine, since that may wait for the
// disk; then the datagram that it came with is heard. An earlier life than that
// which is known is not met.
func (s *supporter) introduce(
	n ids.NodeID, life, mark uint64, data []byte, src netip.AddrPort,
) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[n] == nil && len(s.peers) >= maxSupportPeers {
		return fmt.Errorf("%v is one node more than the %d that are known", n, maxSupportPeers)
	}
	p := s.peer(n)
	switch {
	case life < p.life || life == 0:
		return fmt.Errorf("it comes from life %d of %v, life %d is known", life, n, p.life)
	case p.meeting:
		return fmt.Errorf("%v is being met", n)
	}
	p.meeting = errand(s.meetings, func(context.Context) {
		if !s.meet(n, p, life, mark) {
			s.t.metrics.supportRefused.Add(1)
		} else if err := s.handle(data, src, make([]byte, 0, maxDatagram)); err != nil {
			s.t.metrics.supportRefused.Add(1)
		}
	})
	return nil
}

// peer returns the entry of a node. REQUIRES: mu.
func (s *supporter) peer(n ids.NodeID) *supportPeer {
	p := s.peers[n]
	if p == nil {
		p = &supportPeer{}
		s.peers[n] = p
	}
	return p
}

// meet introduces a process of a node.
func (s *supporter) meet(n ids.NodeID, p *supportPeer, life, mark uint64) bool {
	err := s.t.cfg.Met(&metapb.Hello{
		ProtocolMin: ProtocolMin, ProtocolMax: ProtocolMax,
		ClusterId: s.cluster, NodeId: uint64(n), Life: life, Mark: mark,
		ToNodeId: uint64(s.t.cfg.Self),
	})
	if err == nil {
		s.t.supersede(n, life)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p.meeting = false
	switch {
	case err == nil:
		p.life, p.mark, p.verdict = life, mark, ""
	case p.verdict != err.Error():
		p.verdict = err.Error()
		s.t.cfg.Logger.Warn("refused support to a peer", "node", n, "error", err)
	}
	return err == nil
}

// address returns where a node's datagrams go, and has it looked up when that is
// not known or old. A literal address needs no lookup.
func (s *supporter) address(n ids.NodeID) (netip.AddrPort, bool) {
	name, ok := s.t.cfg.Resolve(n)
	if !ok {
		return netip.AddrPort{}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peer(n)
	if p.name != name {
		p.name, p.addr, p.due = name, netip.AddrPort{}, false
		if addr, err := netip.ParseAddrPort(name); err == nil {
			p.addr = addr
		} else {
			p.due = true
		}
	}
	look := func(ctx context.Context) { s.lookUp(ctx, p, name) }
	if p.due && errand(s.lookups, look) {
		p.due = false
	}
	return p.addr, p.addr.IsValid()
}

// lookUp resolves a host name, within lookupPatience.
func (s *supporter) lookUp(ctx context.Context, p *supportPeer, name string) {
	addr, err := resolve(ctx, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case p.name != name:
	case err != nil:
		p.due = !p.addr.IsValid() // at once again only if nothing is known
	default:
		p.addr = addr
	}
}

func resolve(ctx context.Context, name string) (netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	host, service, err := net.SplitHostPort(name)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("resolve %q: %w", name, err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("resolve %q: %w", name, err)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("resolve %q: %w", name, err)
	}
	if len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("resolve %q: no address", name)
	}
	best := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() })
	return netip.AddrPortFrom(addrs[max(best, 0)].Unmap(), uint16(port)), nil
}

// refresh has host names looked up again now and then: a node may have moved.
func (s *supporter) refresh(ctx context.Context) {
	for ctx.Err() == nil {
		s.t.cfg.Pause(ctx, addressAge)
		s.mu.Lock()
		for _, p := range s.peers { // each alone: the order does not matter
			_, err := netip.ParseAddrPort(p.name)
			p.due = p.due || p.name != "" && err != nil
		}
		s.mu.Unlock()
	}
}

// errand hands work that may block to a goroutine of its own; false: it has too much.
func errand(to chan func(context.Context), f func(context.Context)) bool {
	select {
	case to <- f:
		return true
	default:
		return false
	}
}

func runErrands(ctx context.Context, errands chan func(context.Context)) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-errands:
			f(ctx)
		}
	}
}
