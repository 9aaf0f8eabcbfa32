package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/rpc"
)

// Pace of joining and of what is said meanwhile.
const (
	joinTimeout = 2 * time.Second
	joinEvery   = 500 * time.Millisecond
	noticeEvery = 5 * time.Second
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
		reply, tried, err := s.askAll(ctx)
		if err != nil || reply != nil {
			return s.joined(reply, err)
		}
		s.notice.say("waiting: this node has joined nobody yet; tried " + strings.Join(tried, ", "))
		pause(ctx, joinEvery)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// askAll asks every address of --join, and those that they name, once. No
// reply and no error: nobody could answer; tried says why.
func (s *Server) askAll(ctx context.Context) (*adminpb.JoinReply, []string, error) {
	addrs := slices.Clone(s.cfg.Join)
	limit := len(addrs) + maxRedirects
	var tried []string
	for i := 0; i < len(addrs) && i < limit; i++ {
		reply, err := s.askOne(ctx, addrs[i])
		switch {
		case err == nil && reply.GetNodeId() != 0 && reply.GetClusterId() != 0:
			return reply, nil, nil
		case err == nil && reply.GetRedirectAddress() != "":
			next := reply.GetRedirectAddress()
			tried = append(tried, fmt.Sprintf("%s (sends to %s)", addrs[i], next))
			if !slices.Contains(addrs, next) {
				addrs = append(addrs, next)
			}
		case err == nil:
			tried = append(tried, addrs[i]+" (has no answer yet)")
		case status.Code(err) == codes.FailedPrecondition:
			// The cluster has decided: asking again does not help.
			return nil, nil, fmt.Errorf("join by way of %s: %s",
				addrs[i], status.Convert(err).Message())
		default:
			tried = append(tried, fmt.Sprintf("%s (%s)", addrs[i], inWords(err)))
		}
	}
	return nil, tried, ctx.Err()
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
		Node: s.descriptor(rec.Node), ClusterId: rec.ClusterID,
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
