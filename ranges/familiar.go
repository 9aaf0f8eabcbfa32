package ranges

import (
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// familiar lets any goroutine ask whether recent will most likely know all
// that a write needs, so that the look at the disk, the dearest step of a put
// outside the engine's own work, can be left out.
//
// It only advises. The shard decides by recent itself and looks at the disk
// when the advice was wrong: a fingerprint of another key, or a key that was
// forgotten since. Nothing rests on it but speed.
type familiar struct {
	now atomic.Pointer[familiarKeys]
}

// familiarKeys are the fingerprints of recent's two generations. Stored anew
// when recent rotates; only the slots of young change meanwhile.
type familiarKeys struct {
	young, old *fingerprints
	floor      hlc.Timestamp // recent.memFloor
}

// familiarSlots is the size of a table: twice the keys of a generation, so
// that few of them share a slot. The later one wins it.
const familiarSlots = 2 * recentEntries

// fingerprints holds the upper half of a key's hash at the lower half's slot.
type fingerprints [familiarSlots]atomic.Uint32

func slotOf(hash uint64) (slot, print uint32) {
	return uint32(hash % familiarSlots), uint32(hash>>32) | 1 // 0: nothing
}

func (f *fingerprints) add(hash uint64) {
	slot, print := slotOf(hash)
	f[slot].Store(print)
}

func (f *fingerprints) has(hash uint64) bool {
	slot, print := slotOf(hash)
	return f != nil && f[slot].Load() == print
}

// knows says whether memory is likely to do for a write. Any goroutine. A
// write with a condition needs the value, which only the disk has.
func (f *familiar) knows(w *write) bool {
	keys := f.now.Load()
	if keys == nil || w.hold.exclusive {
		return false
	}
	for i := range w.ops {
		o := &w.ops[i]
		if o.expect != kv.ExpectNothing || o.identity.Client != 0 && o.identity.Floor < keys.floor {
			return false
		}
		if hash := xxhash.Sum64(o.key); !keys.young.has(hash) && !keys.old.has(hash) {
			return false
		}
	}
	return true
}

// add notes a key of recent's younger generation. Shard only, like what follows.
func (f *familiar) add(key string, floor hlc.Timestamp) {
	keys := f.now.Load()
	if keys == nil {
		keys = &familiarKeys{young: new(fingerprints), floor: floor}
		f.now.Store(keys)
	}
	keys.young.add(xxhash.Sum64String(key))
}

// rotate follows recent's.
func (f *familiar) rotate(floor hlc.Timestamp, carried map[string]*keyRecord) {
	keys := f.now.Load()
	if keys == nil {
		return
	}
	next := &familiarKeys{young: new(fingerprints), old: keys.young, floor: floor}
	for k := range carried { // each alone: the order does not matter
		next.young.add(xxhash.Sum64String(k))
	}
	f.now.Store(next)
}

func (f *familiar) clear() { f.now.Store(nil) }
