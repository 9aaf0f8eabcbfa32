package client

import (
	"context"
	"fmt"
	"iter"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// KeyValue is one row of a scan. It is the caller's.
type KeyValue struct {
	Key     []byte
	Value   []byte // nil with KeysOnly
	Version Version
}

// scan is a scan in progress: what is left of its span.
type scan struct {
	lo, hi []byte // internal keys
	flags  uint8
	limit  int           // 0: none
	at     hlc.Timestamp // 0: not fixed yet
	count  int           // rows so far
}

// Scan goes through the keys of [start, end) in order, as they were at one
// instant, whatever is written, split or moved meanwhile. An empty start is the
// first key, an empty end is beyond the last.
//
//	for kv, err := range c.Scan(ctx, start, end, client.WithLimit(10)) {
//		if err != nil {
//			return err
//		}
//		...
//	}
//
// An error is the last thing that it yields. Leaving the loop early is fine.
// Rows are fetched in pages as the loop consumes them; each use of the
// returned sequence scans anew.
func (c *Client) Scan(
	ctx context.Context, start, end []byte, opts ...ScanOption,
) iter.Seq2[KeyValue, error] {
	return func(yield func(KeyValue, error) bool) {
		lo, hi, err := internalSpan("scan", start, end)
		if err != nil {
			yield(KeyValue{}, err)
			return
		}
		s := scan{lo: lo, hi: hi}
		for _, o := range opts {
			o.applyScan(&s)
		}
		for more := true; more; {
			var r *kv.Response
			var cause error
			r, cause = c.do(ctx, s.request())
			if r.Code != kv.CodeOK {
				yield(KeyValue{}, failure("scan", start, r, cause))
				return
			}
			if more, err = s.take(r, yield); err != nil {
				yield(KeyValue{}, err)
				return
			}
		}
	}
}

// request asks for the next page. The limit of a scan's first request is that
// of the whole scan, see core.Call.
func (s *scan) request() *kv.Request {
	r := &kv.Request{Verb: kv.VerbScan, Key: s.lo, End: s.hi, Flags: s.flags, Timestamp: s.at}
	if left := s.limit - s.count; s.limit > 0 && left <= kv.MaxScanLimit {
		r.Limit = uint32(left)
	}
	return r
}

// take yields the rows of a page and says whether to fetch another.
func (s *scan) take(r *kv.Response, yield func(KeyValue, error) bool) (more bool, err error) {
	s.at = r.Timestamp
	for i := range r.Rows {
		row := &r.Rows[i]
		key, ok := kv.StripUserKey(row.Key)
		if !ok {
			return false, &Error{
				Verb: "scan", Kind: ErrInternal,
				Detail: fmt.Sprintf("a node returned a key outside the user's space: %x", row.Key),
			}
		}
		out := KeyValue{
			Key: key[:len(key):len(key)], Value: row.Value[:len(row.Value):len(row.Value)],
			Version: Version(row.Version),
		}
		if out.Value == nil && s.flags&kv.FlagKeysOnly == 0 {
			out.Value = []byte{} // empty, not absent
		}
		if !yield(out, nil) {
			return false, nil
		}
		if s.count++; s.limit > 0 && s.count >= s.limit {
			return false, nil
		}
	}
	if !r.More {
		return false, nil
	}
	if s.flags&kv.FlagReverse != 0 {
		s.hi = r.ResumeKey
	} else {
		s.lo = r.ResumeKey
	}
	return true, nil
}
