package rpc

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/metapb"
	"github.com/flotilla-kv/flotilla/support"
)

// clockTable notes where the clock stands when support is handled.
type clockTable struct {
	*fakeTable
	clock *hlc.Hybrid
	at    []hlc.Timestamp
}

func (c *clockTable) HandleRequest(n ids.NodeID, r support.Request) (support.Grant, bool) {
	c.at = append(c.at, c.clock.Peek())
	return c.fakeTable.HandleRequest(n, r)
}

func (c *clockTable) HandleGrant(ids.NodeID, support.Grant) { c.at = append(c.at, c.clock.Peek()) }

// heardBelowTheStamp plays R9f where datagrams are handled: n9, which is met, says
// something with a stamp that n2 does not adopt, and says it again when n2 may. It
// tells what n2 handled with its clock below the stamp, or refused without a reason.
func heardBelowTheStamp(t *testing.T, k kind) error {
	t.Helper()
	const life, mark = 5, 1
	_, conn := listenBoth(t)
	physical := &settableClock{}
	physical.set(500)
	table := &clockTable{
		fakeTable: newFakeTable(), clock: hlc.NewHybrid(physical, hlc.New(500, 0), time.Second),
	}
	table.clock.SetBound(hlc.New(9000, 0))
	tr := NewTransport(Config{
		Self: 2, SupportConn: conn, Clock: table.clock,
		Hello: func() *metapb.Hello { return &metapb.Hello{ClusterId: 77, Life: 1, Mark: 2} },
	})
	tr.support = table
	s := newSupporter(tr)
	s.peers[9] = &supportPeer{life: life, mark: mark}
	stamp := hlc.New(1900, 0)
	frame := appendFields(beginFrame(nil, k, 9), 77, 2, life, mark)
	if k == kindRequest {
		frame = appendRequest(frame, support.Request{Life: life, Sequence: 1, Duration: time.Second})
	} else {
		frame = appendGrant(frame, support.Grant{Life: 1, Sequence: 1, Epoch: 1})
	}
	frame = sealFrame(frame, stamp)
	src := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	refusal := s.handle(frame, src, make([]byte, 0, maxDatagram))
	if refusal == nil || len(table.at) > 0 {
		return fmt.Errorf("a frame of %d was handled by a clock at %d that refuses it",
			stamp.Wall(), table.clock.Peek().Wall())
	}
	physical.set(1000)
	if err := s.handle(frame, src, make([]byte, 0, maxDatagram)); err != nil || len(table.at) != 1 {
		return fmt.Errorf("handled %d times, refused with %v", len(table.at), err)
	}
	if table.at[0] < stamp {
		return fmt.Errorf("a frame of %d was handled by a clock at %d", stamp.Wall(), table.at[0].Wall())
	}
	return nil
}

func TestADatagramIsHandledAboveItsStampOrNotAtAll(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{kindRequest, kindGrant} {
		if err := heardBelowTheStamp(t, k); err != nil {
			t.Errorf("kind %d: %v", k, err)
		}
	}
}
