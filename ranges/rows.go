package ranges

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/rowcache"
)

// The cache of hot rows holds the newest version of keys that leases let this
// node read. What says that a row is still the newest is its stamp: the term and
// the generation under which it was read, and the word of its stripe.
//
// Within a term all that changes rows of a led range is a write of this leader,
// announced in its stripe: the word differs while it is in flight and ever after.
// Followers' applies, snapshots and removals move no stamp; they happen in other
// terms, in which a row of this one is not served. A split or a merge (the keys
// could have been written elsewhere in between) raises the generation. Garbage
// collection takes no newest value away.
//
// A row is put in only if the word was the same, with no write in flight, before
// the read's timestamp was fixed and after: then no version above the timestamp
// was visible, and none at or below it was missing, so what was read is the
// newest. If a write comes while it is being read, the row may be older or newer
// than the write, but its stamp is that of before, and never matches again.
//
// A row serves a get if its stamp is that of now and its version lies at or
// below the get's timestamp, after all checks but those that belong to the
// iterator: no write at or below the timestamp is in flight.

// busy is a word that no quiet stripe has.
const busy = 1

func hashOf(r *Replica, key []byte) uint64 { return rowcache.Hash(r.id, key) }

func (rd *read) stamp(s *state) rowcache.Stamp {
	return rowcache.Stamp{
		Term:       rd.term,
		Generation: ids.Generation(s.desc.GetGeneration()),
		Word:       rd.word,
	}
}

// fromCache answers a get from the cache, or returns nil.
func (rd *read) fromCache() *kv.Response {
	cache := rd.r.table.rows
	if cache == nil || !quiet(rd.word) || rd.ts <= rd.state.threshold {
		return nil
	}
	row, ok := cache.Get(rd.hash, rd.r.id, rd.req.Key, rd.stamp(rd.state), rd.ts)
	if !ok {
		return nil
	}
	rd.witness()
	rd.r.countRead(rd.req.Key, nil, len(rd.req.Key)+len(row.Value))
	return &kv.Response{Found: true, Timestamp: row.Version, Value: row.Value}
}

// toCache remembers what a get has read. The value belongs to the cache and to
// the response, neither of which changes it.
func (rd *read) toCache(now *state, resp *kv.Response) {
	cache := rd.r.table.rows
	if cache == nil || !resp.Found || rd.req.Timestamp != 0 || !quiet(rd.word) ||
		!now.lead.mine || now.lead.term != rd.term ||
		now.desc.GetGeneration() != rd.state.desc.GetGeneration() {
		return
	}
	cache.Put(rd.hash, rd.r.id, rd.req.Key, rd.stamp(now),
		rowcache.Row{Version: resp.Timestamp, Value: resp.Value})
}

// openRowCache makes the cache, if there is to be one.
func (t *Table) openRowCache() error {
	if t.cfg.RowCacheBytes <= 0 {
		return nil
	}
	var err error
	if t.rows, err = rowcache.New(t.cfg.RowCacheBytes); err != nil {
		return fmt.Errorf("open row cache: %w", err)
	}
	return nil
}

// Close ends the cache of hot rows. Requests may still come; they do without it.
func (t *Table) Close() { t.rows.Close() }

// SettleRowCache waits until the cache has taken what reads offered it, so that a
// run that is replayed meets the same hits. Any goroutine.
func (t *Table) SettleRowCache() { t.rows.Settle() }

// RowCache returns what the cache of hot rows did; all zero without one.
func (t *Table) RowCache() rowcache.Stats { return t.rows.Stats() }
