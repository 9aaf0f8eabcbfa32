package mvcc

import (
	"bytes"
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// ScanOptions bound a page. Rows are copies.
type ScanOptions struct {
	Start, End []byte        // internal keys, [Start, End); empty: the iterator's bounds
	Timestamp  hlc.Timestamp // versions above it are not seen
	Limit      int           // rows; 0: kv.MaxScanLimit
	MaxBytes   int           // keys and values; 0: kv.MaxScanBytes; one row always fits
	Reverse    bool          // from End down to Start
	KeysOnly   bool          // rows without values
}

const (
	// maxScanKeys bounds the keys that one page looks at, so that a span full
	// of tombstones cannot hold its reader for seconds. A page that ends here
	// has a resume key, perhaps without any row.
	maxScanKeys = 50_000
	// maxSteps is how many versions of one key a scan steps over before it
	// seeks: a step costs about an eighth of a seek.
	maxSteps = 8
	// arenaBytes is the size of the blocks that copied rows are cut from.
	arenaBytes = 16 << 10
)

// page is a page in the making.
type page struct {
	o      ScanOptions
	rows   []kv.KeyValue
	resume []byte
	bytes  int
	seen   int
	arena  []byte
}

// Scan reads a page. resume is nil when the span is done: forward it is the
// next start, reverse the next (exclusive) end. A page may be short of its
// limits, even empty, and still have a resume key.
func (it *Iterator) Scan(o ScanOptions) (rows []kv.KeyValue, resume []byte, err error) {
	if o.Limit <= 0 {
		o.Limit = kv.MaxScanLimit
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = kv.MaxScanBytes
	}
	p := page{o: o}
	if o.Reverse {
		err = it.scanReverse(&p)
	} else {
		err = it.scanForward(&p)
	}
	if err == nil {
		err = it.it.Error()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("scan: %w", err)
	}
	return p.rows, p.resume, nil
}

// enough says that the page ends before the key that comes next.
func (p *page) enough() bool { return len(p.rows) >= p.o.Limit || p.seen >= maxScanKeys }

// add copies a row, or refuses it if it would go beyond the page's bytes.
func (p *page) add(key []byte, ts hlc.Timestamp, value []byte) bool {
	if p.o.KeysOnly {
		value = nil
	}
	n := len(key) + len(value)
	if len(p.rows) > 0 && p.bytes+n > p.o.MaxBytes {
		return false
	}
	p.bytes += n
	if n > cap(p.arena)-len(p.arena) {
		// Blocks double up to a bound, so that a page of one row is small.
		size := min(max(2*cap(p.arena), 256), arenaBytes)
		p.arena = make([]byte, 0, max(size, n))
	}
	at := len(p.arena)
	p.arena = append(append(p.arena, key...), value...)
	mid, end := at+len(key), at+n
	row := kv.KeyValue{Key: p.arena[at:mid:mid], Version: ts}
	if !p.o.KeysOnly {
		row.Value = p.arena[mid:end:end]
	}
	p.rows = append(p.rows, row)
	return true
}

func (it *Iterator) scanForward(p *page) error {
	if len(p.o.Start) > 0 {
		it.key = AppendKey(it.key[:0], p.o.Start, 0)
		it.it.SeekGE(it.key)
	} else {
		it.it.First()
	}
	for it.it.Valid() {
		key, ts, ok := DecodeKey(it.it.Key())
		if !ok {
			return fmt.Errorf("%w: a key in the span is no version", ErrCorrupt)
		}
		if len(p.o.End) > 0 && bytes.Compare(key, p.o.End) >= 0 {
			return nil
		}
		if p.enough() {
			p.resume = bytes.Clone(key)
			return nil
		}
		p.seen++
		if ts > p.o.Timestamp && !it.descend(key, p.o.Timestamp) {
			continue // no version is old enough; the iterator stands at the next key
		}
		e, err := currentEntry(it.it)
		if err != nil {
			return err
		}
		if !e.version.Tombstone && !p.add(e.key, e.version.Timestamp, e.version.Value) {
			p.resume = bytes.Clone(e.key)
			return nil
		}
		it.it.NextPrefix()
	}
	return nil
}

// descend goes from a version of key above ts to the newest one at or below
// it. If there is none it says so and stands at the next key.
func (it *Iterator) descend(key []byte, ts hlc.Timestamp) bool {
	it.saved = append(it.saved[:0], key...)
	for range maxSteps {
		if !it.it.Next() {
			return false
		}
		k, at, ok := DecodeKey(it.it.Key())
		if !ok || !bytes.Equal(k, it.saved) {
			return false
		}
		if at <= ts {
			return true
		}
	}
	it.key = AppendKey(it.key[:0], it.saved, max(ts, 1)) // 1 is below all that is issued
	if !it.it.SeekGE(it.key) {
		return false
	}
	k, at, ok := DecodeKey(it.it.Key())
	return ok && at <= ts && bytes.Equal(k, it.saved)
}

func (it *Iterator) scanReverse(p *page) error {
	if len(p.o.End) > 0 {
		it.key = AppendKey(it.key[:0], p.o.End, 0)
		it.it.SeekLT(it.key)
	} else {
		it.it.Last()
	}
	for it.it.Valid() {
		key, _, ok := DecodeKey(it.it.Key())
		if !ok {
			return fmt.Errorf("%w: a key in the span is no version", ErrCorrupt)
		}
		if len(p.o.Start) > 0 && bytes.Compare(key, p.o.Start) < 0 {
			return nil
		}
		if p.enough() {
			p.resume = append(bytes.Clone(key), 0) // exclusive: key itself comes next
			return nil
		}
		p.seen++
		it.saved = append(it.saved[:0], key...)
		v, found, err := it.ascend(p.o.Timestamp)
		if err != nil {
			return err
		}
		if found && !v.Tombstone && !p.add(it.saved, v.Timestamp, v.Value) {
			p.resume = append(bytes.Clone(it.saved), 0)
			return nil
		}
	}
	return nil
}

// ascend starts at the oldest version of the saved key and finds the newest at
// or below ts. Afterwards the iterator stands before the key, at the oldest
// version of its predecessor. The version's value is a copy in it.value.
func (it *Iterator) ascend(ts hlc.Timestamp) (v Version, found bool, err error) {
	for range maxSteps {
		e, err := currentEntry(it.it)
		if err != nil {
			return v, false, err
		}
		if e.version.Timestamp > ts {
			it.before()
			return v, found, nil
		}
		v, found = it.keep(e), true
		if !it.it.Prev() {
			return v, true, it.it.Error()
		}
		k, _, ok := DecodeKey(it.it.Key())
		if !ok || !bytes.Equal(k, it.saved) {
			return v, true, nil // a key that is no version is the caller's to report
		}
	}
	// Many versions: the oldest is at or below ts, so the seek finds one.
	it.key = AppendKey(it.key[:0], it.saved, ts)
	if !it.it.SeekGE(it.key) {
		return v, false, it.it.Error()
	}
	e, err := currentEntry(it.it)
	if err != nil {
		return v, false, err
	}
	v = it.keep(e)
	it.before()
	return v, true, nil
}

// keep copies the entry's value, which does not survive a move.
func (it *Iterator) keep(e entry) Version {
	it.value = append(it.value[:0], e.version.Value...)
	e.version.Value = it.value
	return e.version
}

// before moves to the oldest version of the key before the saved one.
func (it *Iterator) before() {
	it.key = AppendKey(it.key[:0], it.saved, 0)
	it.it.SeekLT(it.key)
}
