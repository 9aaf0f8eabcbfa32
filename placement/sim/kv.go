package sim

import (
	"bytes"
	"errors"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/placement"
)

// systemKV is range 1 as drivers see it: linearizable, and away when range 1 is.
type systemKV struct {
	rows  map[string]placement.KeyValue
	clock hlc.Timestamp
	away  func() bool
}

var _ placement.KV = (*systemKV)(nil)

var errAway = errors.New("range 1 does not answer")

// Get reads a key; version 0: it does not exist.
func (s *systemKV) Get(key []byte, done func([]byte, hlc.Timestamp, error)) {
	if s.away() {
		done(nil, 0, errAway)
		return
	}
	row := s.rows[string(key)]
	done(bytes.Clone(row.Value), row.Version, nil)
}

// Scan reads [start, end), at most limit rows, in order.
func (s *systemKV) Scan(start, end []byte, limit int,
	done func([]placement.KeyValue, error)) {
	if s.away() {
		done(nil, errAway)
		return
	}
	var rows []placement.KeyValue
	for key, row := range s.rows { // sorted below
		if key >= string(start) && key < string(end) {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b placement.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	done(rows[:min(limit, len(rows))], nil)
}

// CompareAndSwap writes value if the key's version is still expect (0: absent).
func (s *systemKV) CompareAndSwap(key, value []byte, expect hlc.Timestamp,
	done func(bool, error)) {
	if s.away() {
		done(false, errAway)
		return
	}
	if s.rows[string(key)].Version != expect {
		done(false, nil)
		return
	}
	s.clock++
	s.rows[string(key)] = placement.KeyValue{
		Key: bytes.Clone(key), Value: bytes.Clone(value), Version: s.clock,
	}
	done(true, nil)
}
