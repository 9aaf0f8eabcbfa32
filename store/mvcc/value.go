package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// ErrCorrupt says that stored bytes are not what this package writes. The
// replica that holds them must not be read any more.
var ErrCorrupt = errors.New("corrupt version")

// Flags of a value's header.
const (
	flagTombstone   = 1 << 0
	flagIdentity    = 1 << 1
	flagOperation   = 1 << 2 // the identity's operation is not 0
	flagExpiry      = 1 << 3
	flagProvisional = 1 << 4 // reserved for transactions

	knownFlags = flagTombstone | flagIdentity | flagOperation | flagExpiry
)

const clientLen = 8

// Version is one version of a key. Value aliases the iterator or buffer it was
// decoded from.
type Version struct {
	Timestamp hlc.Timestamp
	Tombstone bool        // a deletion; Value is then neither written nor read
	Identity  kv.Identity // Floor is not stored
	Expiry    int64       // wall milliseconds, 0: none (reserved, not interpreted yet)
	Value     []byte
}

// AppendValue appends header and value of a version to dst and returns the
// extended slice. The timestamp stands in the key, not here. A negative expiry
// is written as none.
func AppendValue(dst []byte, v Version) []byte {
	at := len(dst)
	dst = append(dst, 0)
	var flags byte
	if v.Identity.Client != 0 {
		flags |= flagIdentity
		dst = binary.LittleEndian.AppendUint64(dst, v.Identity.Client)
		dst = binary.AppendUvarint(dst, v.Identity.Sequence)
		if v.Identity.Operation != 0 {
			flags |= flagOperation
			dst = binary.AppendUvarint(dst, uint64(v.Identity.Operation))
		}
	}
	if v.Expiry > 0 {
		flags |= flagExpiry
		dst = binary.AppendUvarint(dst, uint64(v.Expiry))
	}
	if v.Tombstone {
		flags |= flagTombstone
	} else {
		dst = append(dst, v.Value...)
	}
	dst[at] = flags
	return dst
}

// DecodeValue reads what AppendValue wrote; Value aliases data and Timestamp
// is left 0. Every error is ErrCorrupt.
func DecodeValue(data []byte) (Version, error) {
	var v Version
	if len(data) == 0 {
		return v, fmt.Errorf("%w: value without header", ErrCorrupt)
	}
	flags, rest := data[0], data[1:]
	if flags&^knownFlags != 0 || flags&(flagIdentity|flagOperation) == flagOperation {
		return v, fmt.Errorf("%w: flags %#x in a value's header", ErrCorrupt, flags)
	}
	ok := true
	if flags&flagIdentity != 0 {
		v.Identity, rest, ok = decodeIdentity(rest, flags&flagOperation != 0)
	}
	if ok && flags&flagExpiry != 0 {
		var expiry uint64
		expiry, rest, ok = uvarint(rest)
		ok = ok && expiry <= math.MaxInt64
		v.Expiry = int64(expiry)
	}
	v.Tombstone = flags&flagTombstone != 0
	if !ok || (v.Tombstone && len(rest) != 0) {
		return Version{}, fmt.Errorf("%w: header of %d bytes, flags %#x",
			ErrCorrupt, len(data), flags)
	}
	if !v.Tombstone {
		v.Value = rest
	}
	return v, nil
}

func decodeIdentity(data []byte, operation bool) (id kv.Identity, rest []byte, ok bool) {
	if len(data) < clientLen {
		return id, nil, false
	}
	id.Client = binary.LittleEndian.Uint64(data)
	id.Sequence, data, ok = uvarint(data[clientLen:])
	if ok && operation {
		var op uint64
		op, data, ok = uvarint(data)
		ok = ok && op <= math.MaxUint32
		id.Operation = uint32(op)
	}
	return id, data, ok && id.Client != 0
}

func uvarint(data []byte) (x uint64, rest []byte, ok bool) {
	x, n := binary.Uvarint(data)
	if n <= 0 {
		return 0, nil, false
	}
	return x, data[n:], true
}
