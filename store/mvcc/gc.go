package mvcc

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

// maxGCVersions bounds the versions that one page looks at, garbage or not:
// about 10 ms of work. A page that ends here resumes, perhaps with an empty
// batch.
const maxGCVersions = 10_000

// GCPage collects garbage at threshold: versions at or below it that a newer
// version at or below it shadows, and tombstones at or below it with nothing
// left below them. It visits only keys with a version between the old and the
// new threshold (time-interval filter), deletes into b until maxBytes of batch
// are written (one deletion always fits), and returns the change and where to
// resume (nil: done).
//
// old is a threshold at which a pass over the whole span has ended (0: none).
// The threshold is durable and checked by readers before the first page; the
// batch of a page is applied before the next page is read.
func GCPage(
	r Reader, b *pebble.Batch, start, end []byte, old, threshold hlc.Timestamp, maxBytes int,
) (d Delta, resume []byte, err error) {
	threshold = min(threshold, hlc.MaxTimestamp-1) // the filter's bound is exclusive
	if threshold <= old {
		return Delta{}, nil, nil
	}
	filter := cockroachkvs.NewMVCCTimeIntervalFilter(uint64(old)+1, uint64(threshold))
	candidates, err := newPebbleIterator(r, start, end, []sstable.BlockPropertyFilter{filter})
	if err != nil {
		return Delta{}, nil, fmt.Errorf("collect garbage: %w", err)
	}
	versions, err := newPebbleIterator(r, start, end, nil)
	if err != nil {
		_ = candidates.Close()
		return Delta{}, nil, fmt.Errorf("collect garbage: %w", err)
	}
	c := collector{
		batch:      b,
		candidates: candidates,
		versions:   versions,
		old:        old,
		threshold:  threshold,
		full:       b.Len() + max(maxBytes, 1),
	}
	resume, err = c.run()
	for _, it := range []*pebble.Iterator{candidates, versions} {
		if closeErr := it.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		return Delta{}, nil, fmt.Errorf("collect garbage: %w", err)
	}
	return c.delta, resume, nil
}

// collector is one page of garbage collection.
type collector struct {
	batch *pebble.Batch
	// candidates is filtered: it may show what is deleted and hide what is
	// not; versions is the truth.
	candidates, versions *pebble.Iterator
	old, threshold       hlc.Timestamp
	full                 int // of the batch, bytes
	seen                 int
	delta                Delta
	key, seek, anchor    []byte // scratch
}

func (c *collector) exhausted() bool {
	return c.batch.Len() >= c.full || c.seen >= maxGCVersions
}

func (c *collector) run() (resume []byte, err error) {
	it := c.candidates
	steps := 0 // over versions of one key above the threshold
	for it.First(); it.Valid(); {
		key, ts, ok := DecodeKey(it.Key())
		if !ok {
			return nil, fmt.Errorf("%w: a key in the span is no version", ErrCorrupt)
		}
		if c.exhausted() {
			return bytes.Clone(key), nil
		}
		c.seen++
		if ts > c.threshold && steps < maxSteps {
			steps++
			it.Next()
			continue
		}
		steps = 0
		switch {
		case ts > c.threshold:
			c.seek = AppendKey(c.seek[:0], key, c.threshold)
			it.SeekGE(c.seek)
		case ts <= c.old:
			it.NextPrefix()
		default:
			c.key = append(c.key[:0], key...)
			done, err := c.collect()
			if err != nil {
				return nil, err
			}
			if !done {
				return bytes.Clone(c.key), nil
			}
			it.NextPrefix()
		}
	}
	return nil, it.Error()
}

// collect deletes the garbage of one key, the anchor last if it is a tombstone.
// done is false if the page filled up before: the anchor is there still, so
// the next page finds the key again.
func (c *collector) collect() (done bool, err error) {
	it := c.versions
	c.seek = AppendKey(c.seek[:0], c.key, c.threshold)
	if !it.SeekPrefixGE(c.seek) {
		return true, it.Error()
	}
	anchor, err := currentEntry(it)
	if err != nil {
		return false, err
	}
	c.anchor = append(c.anchor[:0], anchor.engineKey...)
	hash := anchor.fingerprint()
	for it.Next() {
		if c.exhausted() {
			return false, nil
		}
		e, err := currentEntry(it)
		if err != nil {
			return false, err
		}
		c.seen++
		if err := c.delete(e, e.engineKey, e.fingerprint()); err != nil {
			return false, err
		}
	}
	if err := it.Error(); err != nil || !anchor.version.Tombstone {
		return true, err
	}
	return true, c.delete(anchor, c.anchor, hash)
}

// delete stages the deletion of e; only its sizes and flags are read, the
// bytes may be gone.
func (c *collector) delete(e entry, engineKey []byte, hash uint64) error {
	// The engine is told the size, so that it compacts where the most is gained.
	if err := c.batch.DeleteSized(engineKey, uint32(e.valueBytes), nil); err != nil {
		return err
	}
	c.delta.Stats.collected(e.version.Tombstone, e.keyBytes, e.valueBytes)
	c.delta.Fingerprint -= hash
	return nil
}
