package client

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/proto/adminpb"
)

// lookupHedge is how long an endpoint may think about a lookup before the next
// one is asked as well: the first may be the node whose loss made it necessary.
const lookupHedge = 100 * time.Millisecond

// lookedUp is what one endpoint said.
type lookedUp struct {
	addr  string
	reply *adminpb.LookupReply
	err   error
}

// lookup asks one endpoint after the other; the first answer counts.
func (c *Client) lookup(r *adminpb.LookupRequest) (*adminpb.LookupReply, error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	left := c.directory.candidates()
	answers := make(chan lookedUp)
	asked := 0
	ask := func() {
		if len(left) == 0 {
			return
		}
		addr := left[0]
		left = left[1:]
		asked++
		c.running.Go(func() { c.lookupAt(ctx, addr, r, answers) })
	}
	hedge := time.NewTicker(lookupHedge)
	defer hedge.Stop()
	var tried []string
	for ask(); asked > 0; {
		select {
		case <-c.ctx.Done():
			return nil, ErrClosed
		case <-hedge.C:
			ask()
		case a := <-answers:
			asked--
			if a.err == nil {
				c.directory.answered(a.addr)
				for _, n := range a.reply.GetNodes() {
					c.directory.learn(n)
				}
				return a.reply, nil
			}
			if !passedOver(a.err) {
				return nil, a.err
			}
			tried = append(tried, fmt.Sprintf("%s (%s)", a.addr, reason(a.err)))
			ask()
		}
	}
	c.directory.answered("")
	return nil, &Error{
		Verb: "ask the cluster", Kind: ErrUnavailable, Detail: "tried " + strings.Join(tried, ", "),
	}
}

// lookupAt asks one endpoint.
func (c *Client) lookupAt(
	ctx context.Context, addr string, r *adminpb.LookupRequest, answers chan<- lookedUp,
) {
	a := lookedUp{addr: addr}
	a.err = c.adminAt(ctx, addr, func(ctx context.Context, admin adminpb.AdminClient) (err error) {
		a.reply, err = admin.Lookup(ctx, r)
		return err
	})
	select {
	case answers <- a:
	case <-ctx.Done():
	}
}
