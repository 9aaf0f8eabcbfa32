package rpc

import (
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/multiraft"
)

// EncodeFrames encodes a frame of messages as the transport does: as several
// wire frames where one would be too large. The simulator's network carries
// these bytes, so that simulated nodes share no memory.
func EncodeFrames(f *multiraft.Frame) [][]byte {
	var out [][]byte
	for rest := f.Messages; len(rest) > 0; {
		data, taken, _ := messagesFrame(nil, f.From, rest, func() hlc.Timestamp { return f.Stamp })
		out = append(out, data)
		rest = rest[taken:]
	}
	return out
}

// DecodeFrame decodes what EncodeFrames made. The messages alias data.
func DecodeFrame(data []byte) (multiraft.Frame, error) {
	env, err := openFrame(data)
	if err != nil {
		return multiraft.Frame{}, err
	}
	msgs, err := decodeMessages(env.payload)
	return multiraft.Frame{From: env.from, Stamp: env.stamp, Messages: msgs}, err
}
