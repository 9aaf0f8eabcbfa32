package kv

import "github.com/flotilla-kv/flotilla/internal/hlc"

// FrameKind says what a frame carries.
type FrameKind uint8

// The kinds of frames.
const (
	FrameHello     FrameKind = 1 // Hello: marshalled metapb.Hello
	FrameRequests  FrameKind = 2
	FrameResponses FrameKind = 3
	FrameStamp     FrameKind = 4 // only a stamp: keeps a client's floor fresh
	// FrameLeaving has no items: the node stops. The client sends nothing more
	// on this stream and closes its side; the node answers what it has.
	FrameLeaving FrameKind = 5
)

// Frame is one message of a batch stream. The format is in codec.go.
type Frame struct {
	Kind      FrameKind
	Stamp     hlc.Timestamp
	Hello     []byte
	Requests  []Request
	Responses []Response
}
