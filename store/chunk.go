package store

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// A snapshot travels in chunks: count(4), then count pairs of key and value
// with their lengths (uvarint) in engine order, then the xxhash64 of all that(8).
// Fixed numbers are little endian.
const (
	chunkBytes    = 256 << 10 // at which a chunk is closed; one pair may pass it
	chunkOverhead = 4 + 8
)

// chunkWriter collects pairs.
type chunkWriter struct {
	b []byte
	n uint32
}

func (c *chunkWriter) add(key, value []byte) {
	if c.n == 0 {
		c.b = append(make([]byte, 0, chunkBytes+chunkBytes/4), 0, 0, 0, 0)
	}
	c.b = binary.AppendUvarint(c.b, uint64(len(key)))
	c.b = append(c.b, key...)
	c.b = binary.AppendUvarint(c.b, uint64(len(value)))
	c.b = append(c.b, value...)
	c.n++
}

func (c *chunkWriter) full() bool { return len(c.b) >= chunkBytes }

// take returns the chunk and begins a new one.
func (c *chunkWriter) take() []byte {
	binary.LittleEndian.PutUint32(c.b, c.n)
	out := binary.LittleEndian.AppendUint64(c.b, xxhash.Sum64(c.b))
	*c = chunkWriter{}
	return out
}

// openChunk verifies a chunk and returns its pairs for forEachPair.
func openChunk(chunk []byte) (pairs []byte, count uint32, err error) {
	if len(chunk) < chunkOverhead {
		return nil, 0, fmt.Errorf("%w: a chunk of %d bytes", ErrBadSnapshot, len(chunk))
	}
	body, sum := chunk[:len(chunk)-8], binary.LittleEndian.Uint64(chunk[len(chunk)-8:])
	if xxhash.Sum64(body) != sum {
		return nil, 0, fmt.Errorf("%w: checksum of a chunk of %d bytes does not match",
			ErrBadSnapshot, len(chunk))
	}
	return body[4:], binary.LittleEndian.Uint32(body), nil
}

// forEachPair calls f for every pair; key and value alias pairs.
func forEachPair(pairs []byte, f func(key, value []byte) error) (count uint32, err error) {
	for len(pairs) > 0 {
		key, rest, ok := takeString(pairs)
		if !ok {
			return count, fmt.Errorf("%w: pair %d is cut short", ErrBadSnapshot, count)
		}
		value, rest, ok := takeString(rest)
		if !ok {
			return count, fmt.Errorf("%w: pair %d is cut short", ErrBadSnapshot, count)
		}
		if err := f(key, value); err != nil {
			return count, err
		}
		pairs = rest
		count++
	}
	return count, nil
}
