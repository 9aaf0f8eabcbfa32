package server

import (
	"runtime"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

func TestClientsAreToldToGoAndGetTheAnswersToWhatTheyHaveSent(t *testing.T) {
	t.Parallel()
	d, err := openDoor(t, goodHello())
	if err != nil {
		t.Fatal(err)
	}
	d.write(kv.AppendRequests(nil, hlc.New(1000, 9), gets(1, 3)))
	for d.table.arrived.Load() < 3 {
		runtime.Gosched()
	}
	gone := make(chan struct{})
	go func() {
		d.k.leave(t.Context())
		close(gone)
	}()
	if f, err := d.receive(); err != nil || f.Kind != kv.FrameLeaving {
		t.Fatalf("%+v, %v", f, err)
	}
	// What crosses the news on its way is answered, too.
	d.write(kv.AppendRequests(nil, hlc.New(1000, 9), gets(4, 2)))
	if err := d.s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for d.table.arrived.Load() < 5 {
		runtime.Gosched()
	}
	for _, h := range d.table.release() {
		h.done(&kv.Response{ID: h.req.ID})
	}
	d.responses(5)
	if _, err := d.receive(); err == nil || err.Error() != "EOF" {
		t.Fatalf("after the last answer: %v", err)
	}
	<-gone
}
