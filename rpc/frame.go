package rpc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// frameVersion is the first byte of every frame. A receiver refuses others; the
// Hello, which is a frame too, negotiates before anything else is sent.
const frameVersion = 1

// The range of protocols that this build speaks; a Hello carries it.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)

// kind says what a frame carries.
type kind byte

const (
	kindHello    kind = 1 // marshalled metapb.Hello, first frame each way
	kindMessages kind = 2 // raft messages
	kindAlive    kind = 3 // nothing: the receiver lives
	kindHeader   kind = 4 // marshalled metapb.SnapshotHeader
	kindChunk    kind = 5 // a chunk of a snapshot
	kindEnd      kind = 6 // the snapshot is complete
	kindVerdict  kind = 7 // verdict byte, then a reason in words
	kindRequest  kind = 8 // a request for support
	kindGrant    kind = 9 // support granted
)

// Layout: version(1) kind(1) stamp(8) from(8) payload crc32c(4), little endian.
// Fixed widths let the stamp be patched in when the last message is in.
const (
	offsetStamp   = 2
	offsetFrom    = 10
	headerBytes   = 18
	checksumBytes = 4
)

// errCorrupt is wrapped by every error about bytes that are not a valid frame.
var errCorrupt = errors.New("corrupt frame")

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// beginFrame appends the head of a frame to an empty buffer.
func beginFrame(buf []byte, k kind, from ids.NodeID) []byte {
	buf = append(buf, frameVersion, byte(k))
	buf = binary.LittleEndian.AppendUint64(buf, 0) // stamp, see sealFrame
	return binary.LittleEndian.AppendUint64(buf, uint64(from))
}

// sealFrame stamps a frame and ends it. The caller reads the stamp after the
// last message went in: the receiver's clock then stands above everything that
// the sender had served when it composed the frame.
func sealFrame(buf []byte, stamp hlc.Timestamp) []byte {
	binary.LittleEndian.PutUint64(buf[offsetStamp:], uint64(stamp))
	return binary.LittleEndian.AppendUint32(buf, crc32.Checksum(buf, castagnoli()))
}

// envelope is an opened frame; payload aliases it.
type envelope struct {
	kind    kind
	from    ids.NodeID
	stamp   hlc.Timestamp
	payload []byte
}

func openFrame(data []byte) (envelope, error) {
	if len(data) < headerBytes+checksumBytes {
		return envelope{}, fmt.Errorf("%w: %d bytes are too few", errCorrupt, len(data))
	}
	body := data[:len(data)-checksumBytes]
	want := binary.LittleEndian.Uint32(data[len(body):])
	if got := crc32.Checksum(body, castagnoli()); got != want {
		return envelope{}, fmt.Errorf("%w: checksum is %08x, the frame says %08x (%d bytes)",
			errCorrupt, got, want, len(data))
	}
	if body[0] != frameVersion {
		return envelope{}, fmt.Errorf("%w: version %d, this node reads %d",
			errCorrupt, body[0], frameVersion)
	}
	return envelope{
		kind:    kind(body[1]),
		stamp:   hlc.Timestamp(binary.LittleEndian.Uint64(body[offsetStamp:])),
		from:    ids.NodeID(binary.LittleEndian.Uint64(body[offsetFrom:])),
		payload: body[headerBytes:],
	}, nil
}
