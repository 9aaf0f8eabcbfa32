package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/rpc"
)

// Pace of joining and of what is said meanwhile.
const (
	joinTimeout = 2 * time.Second
	joinEvery   = 500 * time.Millisecond
	noticeEvery = 5 * time.Second
	// seedCheckTimeout bounds what a restart waits for --join's addresses.
	seedCheckTimeout = 500 * time.Millisecond
	// maxRedirects bounds the addresses that answers add to a round.
	maxRedirects = 8
)

// join asks until the cluster answers. While it waits, the ports say so too.
func (s *Server) join(ctx context.Context) (*membership, error) {
	stop, err := s.serveWaiting()
	if err != nil {
		return nil, err
	}
	defer stop()
	for {
		r, err := s.askAll(ctx)
		if err != nil || r.reply != nil {
			return s.joined(r.reply, err)
		}
		s.notice.say("waiting: this node has joined nobody yet; tried " + strings.Join(r.tried, ", "))
		pause(ctx, joinEvery)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// checkSeeds asks the addresses of --join once, before a restarted node serves:
// a node of another cluster there means that --data or --join is a mistake, and
// the node would serve a cluster that nobody meant. Silence means nothing; the
// others may be down, too.
func (s *Server) checkSeeds(ctx context.Context) error {
	if len(s.cfg.Join) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, seedCheckTimeout)
	defer cancel()
	rec := s.store.Identity().Record()
	errs := make([]error, len(s.cfg.Join))
	var wg sync.WaitGroup
	for i, addr := range s.cfg.Join {
		wg.Go(func() { errs[i] = askCluster(ctx, addr, rec.ClusterID) })
	}
	wg.Wait()
	for i, err := range errs {
		if status.Code(err) == codes.FailedPrecondition {
			return fmt.Errorf("data directory %q belongs to %v of cluster %016x: "+
				"%s is a node of another cluster (%s): give --data of that cluster's node, or "+
				"correct --join", s.cfg.Data,
				rec.Node, rec.ClusterID, s.cfg.Join[i], status.Convert(err).Message())
		}
	}
	return nil
}

// askCluster asks whether a node belongs to a cluster: with a question that every
// node answers, whoever leads.
func askCluster(ctx context.Context, addr string, cluster uint64) error {
	conn, err := rpc.Dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = adminpb.NewControlClient(conn).Time(ctx, &adminpb.TimeRequest{ClusterId: cluster})
	return err
}

// askRound is what came of asking every address once.
type askRound struct {
	reply  *adminpb.JoinReply // nil: nobody could answer
	tried  []string           // why not, in words
	unsure bool               // some address may belong to a cluster all the same
	gone   bool               // the cluster has decommissioned this node
}

// askAll asks every address of --join but its own, and those that they name,
// once. An error is final: the cluster has refused.
func (s *Server) askAll(ctx context.Context) (askRound, error) {
	return s.askThese(ctx, s.cfg.Join)
}

// askThese is askAll with other addresses.
func (s *Server) askThese(ctx context.Context, addrs []string) (askRound, error) {
	var r askRound
	own := []string{s.advertise, s.cfg.Listen, s.grpcLn.Addr().String()}
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		return slices.Contains(own, a)
	})
	limit := len(addrs) + maxRedirects
	for i := 0; i < len(addrs) && i < limit; i++ {
		reply, err := s.askOne(ctx, addrs[i])
		next := reply.GetRedirectAddress()
		switch {
		case err == nil && reply.GetNodeId() != 0 && reply.GetClusterId() != 0:
			r.reply = reply
			return r, nil
		case err == nil && next != "" && !slices.Contains(addrs, next) && !slices.Contains(own, next):
			r.unsure = true
			r.tried = append(r.tried, fmt.Sprintf("%s (sends to %s)", addrs[i], next))
			addrs = append(addrs, next)
		case err == nil:
			r.unsure = true
			r.tried = append(r.tried, addrs[i]+" (has no leader of the system range yet)")
		case status.Code(err) == codes.FailedPrecondition:
			// The cluster has decided: asking again does not help.
			r.gone = standingIn(err) == metapb.NodeStanding_NODE_STANDING_DECOMMISSIONED
			return r, fmt.Errorf("join by way of %s: %s", addrs[i], status.Convert(err).Message())
		default:
			if status.Code(err) != codes.NotFound && !nobodyListens(ctx, addrs[i]) {
				r.unsure = true
			}
			r.tried = append(r.tried, fmt.Sprintf("%s (%s)", addrs[i], inWords(err)))
		}
	}
	return r, ctx.Err()
}

// nobodyListens says whether a port refuses connections: its machine lives and
// no process has it.
func nobodyListens(ctx context.Context, addr string) bool {
	d := net.Dialer{Timeout: joinTimeout}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		_ = conn.Close() // it only had to open
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

func (s *Server) askOne(ctx context.Context, addr string) (*adminpb.JoinReply, error) {
	conn, err := rpc.Dial(addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	rec := s.store.Identity().Record()
	return adminpb.NewControlClient(conn).Join(ctx, &adminpb.JoinRequest{
		// The cluster that was asked for: another one refuses before it registers.
		Node: s.descriptor(rec.Node), ClusterId: cmp.Or(rec.ClusterID, s.cfg.Cluster),
	})
}

// inWords says briefly why a call failed: grpc's texts are nested, and their
// last part says what happened.
func inWords(err error) string {
	switch {
	case err == nil:
		return "no answer"
	case status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	text := status.Convert(err).Message()
	if strings.Contains(text, "looked like an HTTP/1.1 header") {
		return "it speaks HTTP, not gRPC: is that the node's --http address?"
	}
	if strings.Contains(text, "connection error") {
		text = strings.TrimRight(text[strings.LastIndex(text, ": ")+1:], `" `)
	}
	return strings.TrimSpace(text)
}

// notices says what a node waits for: when it changes, and now and then again.
type notices struct {
	out  func(string)
	last string
	at   time.Time
}

// say is for one goroutine at a time.
func (n *notices) say(line string) {
	if line == n.last && time.Since(n.at) < noticeEvery {
		return
	}
	n.last, n.at = line, time.Now()
	n.out(line)
}
