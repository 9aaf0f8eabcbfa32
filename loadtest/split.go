package loadtest

import (
	"fmt"
	"math/bits"
)

// SplitKeys returns the n-1 keys that cut the keys of a load with this prefix
// (hashed, not ordered) into n equal ranges, in order.
func SplitKeys(prefix string, n int) [][]byte {
	var keys [][]byte
	for i := 1; i < n; i++ {
		share, _ := bits.Div64(uint64(i), 0, uint64(n)) // i/n of 2^64
		keys = append(keys, fmt.Appendf(nil, "%s%0*x", prefix, hashedDigits, share))
	}
	return keys
}

// Bisect returns keys in an order in which each key splits the middle of what
// the keys of the levels before it left whole: all keys of a level lie in
// different ranges, so they can be split at once.
func Bisect(keys [][]byte) (levels [][][]byte) {
	type part struct{ from, to int }
	parts := []part{{0, len(keys)}}
	for len(parts) > 0 {
		var level [][]byte
		var next []part
		for _, p := range parts {
			if p.from == p.to {
				continue
			}
			middle := p.from + (p.to-p.from)/2
			level = append(level, keys[middle])
			next = append(next, part{p.from, middle}, part{middle + 1, p.to})
		}
		if len(level) > 0 {
			levels = append(levels, level)
		}
		parts = next
	}
	return levels
}

// probeKey returns a key of the range.
func (r *Range) probeKey() []byte {
	return append(append(make([]byte, 0, len(r.Start)+1), r.Start...), 0)
}
