package placement

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// memKV is range 1 as placement sees it: linearizable, and as unreliable as a
// test wants it to be.
type memKV struct {
	rows     map[string]KeyValue
	clock    hlc.Timestamp
	later    []func() // answers under way, if delayed
	delayed  bool
	failing  func() bool // says whether an operation fails
	conflict func(key []byte)
	writes   int
}

func newMemKV() *memKV { return &memKV{rows: make(map[string]KeyValue)} }

var errKV = fmt.Errorf("range 1 does not answer")

func (m *memKV) answer(f func()) {
	if m.delayed {
		m.later = append(m.later, f)
		return
	}
	f()
}

// deliver delivers the answers that are under way, in the given order.
func (m *memKV) deliver(shuffle *rand.Rand) {
	batch := m.later
	m.later = nil
	if shuffle != nil {
		shuffle.Shuffle(len(batch), func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
	}
	for _, f := range batch {
		f()
	}
}

func (m *memKV) fails() bool { return m.failing != nil && m.failing() }

func (m *memKV) Get(key []byte, done func([]byte, hlc.Timestamp, error)) {
	row, failed := m.rows[string(key)], m.fails()
	m.answer(func() {
		if failed {
			done(nil, 0, errKV)
			return
		}
		done(bytes.Clone(row.Value), row.Version, nil)
	})
}

func (m *memKV) Scan(start, end []byte, limit int, done func([]KeyValue, error)) {
	var rows []KeyValue
	for k, row := range m.rows {
		if k >= string(start) && k < string(end) {
			rows = append(rows, row)
		}
	}
	slices.SortFunc(rows, func(a, b KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	rows, failed := rows[:min(limit, len(rows))], m.fails()
	m.answer(func() {
		if failed {
			done(nil, errKV)
			return
		}
		done(rows, nil)
	})
}

func (m *memKV) CompareAndSwap(key, value []byte, expect hlc.Timestamp,
	done func(bool, error)) {
	if m.conflict != nil {
		m.conflict(key)
	}
	before, after := m.fails(), m.fails()
	swapped := !before && m.rows[string(key)].Version == expect
	if swapped {
		m.clock++
		m.writes++
		m.rows[string(key)] = KeyValue{bytes.Clone(key), bytes.Clone(value), m.clock}
	}
	m.answer(func() {
		if before || after {
			done(false, errKV)
			return
		}
		done(swapped, nil)
	})
}
