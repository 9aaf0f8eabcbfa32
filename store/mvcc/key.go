package mvcc

import (
	"encoding/binary"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

const (
	sentinel   = 0x00
	versionLen = 9              // timestamp and length byte; also the value of that byte
	suffixLen  = 1 + versionLen // with the sentinel
	timeOffset = versionLen     // from the end of an engine key to its timestamp
)

// AppendKey appends the engine key of the version of key at ts to dst and
// returns the extended slice. Timestamp 0 gives the bare prefix (key 0x00),
// which sorts before all versions of the key.
func AppendKey(dst, key []byte, ts hlc.Timestamp) []byte {
	dst = append(dst, key...)
	dst = append(dst, sentinel)
	if ts == 0 {
		return dst
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(ts))
	return append(dst, versionLen)
}

// DecodeKey splits an engine key. The key aliases engineKey. ok is false if it
// is not the key of a version (a bare prefix, or another kind of suffix).
func DecodeKey(engineKey []byte) (key []byte, ts hlc.Timestamp, ok bool) {
	n := len(engineKey) - suffixLen
	if n < 0 || engineKey[len(engineKey)-1] != versionLen || engineKey[n] != sentinel {
		return nil, 0, false
	}
	ts = hlc.Timestamp(binary.BigEndian.Uint64(engineKey[len(engineKey)-timeOffset:]))
	return engineKey[:n:n], ts, ts != 0
}
