package loadtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
)

// Distribution says how records are chosen.
type Distribution string

// The distributions.
const (
	// Uniform: every loaded record alike.
	Uniform Distribution = "uniform"
	// Zipfian: few records get most requests; they lie scattered over the
	// loaded records. Records inserted by the run are not chosen.
	Zipfian Distribution = "zipfian"
	// Latest: the records inserted last get most requests.
	Latest Distribution = "latest"
)

// chooser chooses records for one client. Not safe for concurrent use.
type chooser struct {
	distribution Distribution
	loaded       uint64
	present      *inserts
	zipf         zipf
	zipfOver     uint64 // what zipf was made for
}

func newChooser(d Distribution, loaded uint64, present *inserts) chooser {
	return chooser{distribution: d, loaded: loaded, present: present,
		zipf: newZipf(loaded, zipfTheta), zipfOver: loaded}
}

// next returns the index of a record.
func (c *chooser) next(r *rand.Rand) uint64 {
	switch c.distribution {
	case Zipfian:
		return mix(c.zipf.rank(r)) % c.loaded
	case Latest:
		n := c.present.contiguous()
		if n != c.zipfOver {
			c.zipf, c.zipfOver = newZipf(n, zipfTheta), n
		}
		return n - 1 - c.zipf.rank(r)
	default:
		return r.Uint64N(c.loaded)
	}
}

// inserts hands out the indexes of new records and knows up to where all have
// been inserted. It is safe for concurrent use.
type inserts struct {
	next  atomic.Uint64
	below atomic.Uint64 // all records below are finished
	mu    struct {
		sync.Mutex
		ahead map[uint64]struct{} // finished beyond; bounded by the clients
	}
}

func newInserts(from uint64) *inserts {
	i := &inserts{}
	i.next.Store(from)
	i.below.Store(from)
	i.mu.ahead = make(map[uint64]struct{})
	return i
}

func (i *inserts) take() uint64       { return i.next.Add(1) - 1 }
func (i *inserts) contiguous() uint64 { return i.below.Load() }

// finished notes the end of an insert. One that failed counts too: waiting for
// it would freeze the "latest" records for good.
func (i *inserts) finished(index uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.mu.ahead[index] = struct{}{}
	below := i.below.Load()
	for {
		if _, ok := i.mu.ahead[below]; !ok {
			break
		}
		delete(i.mu.ahead, below)
		below++
	}
	i.below.Store(below)
}

// keyspace makes keys of record indexes.
type keyspace struct {
	prefix  string
	ordered bool
}

const (
	hashedDigits  = 16 // hexadecimal
	orderedDigits = 12 // decimal
)

// append appends the key of a record: hashed, neighbours by index lie apart
// and inserts spread over all ranges; ordered, they lie side by side.
func (k keyspace) append(dst []byte, index uint64) []byte {
	if k.ordered {
		return appendPadded(append(dst, k.prefix...), index, 10, orderedDigits)
	}
	return appendPadded(append(dst, k.prefix...), mix(index), 16, hashedDigits)
}

func appendPadded(dst []byte, x uint64, base, digits int) []byte {
	var room [20]byte
	s := strconv.AppendUint(room[:0], x, base)
	for range digits - len(s) {
		dst = append(dst, '0')
	}
	return append(dst, s...)
}

// bucketCount is how many buckets stand for the ranges of a store without any.
const bucketCount = 16

// buckets cuts the keys of the loaded records into equal parts.
func (k keyspace) buckets(records uint64) []Range {
	all := make([]Range, bucketCount)
	for i := range all {
		var start []byte
		switch {
		case i == 0: // everything below belongs to the first
		case k.ordered:
			start = k.append(nil, uint64(i)*records/bucketCount)
		default:
			start = fmt.Appendf(nil, "%s%016x", k.prefix, uint64(i)<<60)
		}
		all[i] = Range{Start: start}
		if i > 0 {
			all[i-1].End = start
		}
	}
	return all
}

// fillValue fills a value with random bytes, which do not compress; its last
// share (0 to 1) of bytes stays as it is, zeros.
func fillValue(r *rand.Rand, value []byte, compressible float64) {
	n := len(value) - int(float64(len(value))*compressible)
	for i := 0; i < n; i += 8 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], r.Uint64())
		copy(value[i:n], b[:])
	}
}
