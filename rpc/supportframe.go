package rpc

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/support"
)

// A request is life, sequence, duration, ceiling, digest and wall clock, a grant
// life, sequence, epoch, ceiling and wall clock; each field has eight bytes,
// little endian. Both fit one packet with their envelope many times over, so
// fixed widths cost nothing.
const (
	introductionBytes = 4 * 8 // cluster, receiver, the sender's life and mark
	requestBytes      = 6 * 8
	grantBytes        = 5 * 8
)

func appendFields(buf []byte, fields ...uint64) []byte {
	for _, f := range fields {
		buf = binary.LittleEndian.AppendUint64(buf, f)
	}
	return buf
}

func field(payload []byte, i int) uint64 { return binary.LittleEndian.Uint64(payload[8*i:]) }

func appendRequest(buf []byte, r support.Request) []byte {
	return appendFields(buf, uint64(r.Life), r.Sequence, uint64(r.Duration),
		uint64(r.Ceiling), r.Digest, uint64(r.Wall))
}

func decodeRequest(b []byte) (support.Request, error) {
	if len(b) != requestBytes {
		return support.Request{}, fmt.Errorf("%w: a request for support of %d bytes, not %d",
			errCorrupt, len(b), requestBytes)
	}
	r := support.Request{
		Life:     ids.Life(field(b, 0)),
		Sequence: field(b, 1),
		Duration: time.Duration(field(b, 2)),
		Ceiling:  hlc.Timestamp(field(b, 3)),
		Digest:   field(b, 4),
		Wall:     int64(field(b, 5)),
	}
	if r.Life == 0 || r.Duration <= 0 {
		return support.Request{}, fmt.Errorf("%w: a request of life %d for support of %v",
			errCorrupt, r.Life, r.Duration)
	}
	return r, nil
}

func appendGrant(buf []byte, g support.Grant) []byte {
	return appendFields(buf, uint64(g.Life), g.Sequence, uint64(g.Epoch),
		uint64(g.Ceiling), uint64(g.Wall))
}

func decodeGrant(b []byte) (support.Grant, error) {
	if len(b) != grantBytes {
		return support.Grant{}, fmt.Errorf("%w: a grant of support of %d bytes, not %d",
			errCorrupt, len(b), grantBytes)
	}
	g := support.Grant{
		Life:     ids.Life(field(b, 0)),
		Sequence: field(b, 1),
		Epoch:    support.Epoch(field(b, 2)),
		Ceiling:  hlc.Timestamp(field(b, 3)),
		Wall:     int64(field(b, 4)),
	}
	if g.Epoch == 0 {
		return support.Grant{}, fmt.Errorf("%w: a grant without an epoch", errCorrupt)
	}
	return g, nil
}
