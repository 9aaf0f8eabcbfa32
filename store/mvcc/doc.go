// Package mvcc is the encoding of versioned values and the functions that read
// and write them. No lock, goroutine or clock; all state is in the arguments.
//
// # Keys
//
// A version of key k at timestamp t is the engine key
//
//	k 0x00 t(8, big endian) 0x09
//
// which is the cockroachkvs encoding with the whole 64-bit hybrid timestamp in
// its wall part. The engine's comparer puts the bare prefix (k 0x00) first,
// then the versions, newest first. Order of prefixes is order of keys: where
// one key continues another, the 0x00 of the shorter meets a byte that is at
// least 0x00, and if it is 0x00 the shorter key has ended first. So keys may
// hold any bytes. The bare prefix is never written here, it is only a bound or
// a place to seek to; bounds end in 0x00 because the comparer demands it.
//
// # Values
//
//	flags(1) [client(8, little endian) sequence(uvarint) [operation(uvarint)]]
//	         [expiry(uvarint)] value
//
// A put without identity costs one byte more than its value, one of a client
// 10 to 13 as a rule (an operation of 0 is not stored). An unknown flag is an
// error: whoever wrote it meant something that this code would lose.
//
// # Statistics and fingerprint
//
// Every change returns its Delta, and deltas are exactly additive: summed over
// all changes of a span they equal what Compute finds by reading it. That
// needs the newest version of a key before a write (Newest, from Probe) and
// nothing else. Each byte of a span is either live (the newest version of a
// key, if it is a value) or garbage (a version that a newer one of its key
// shadows, or a tombstone, shadowed or not), so always
//
//	KeyBytes + ValueBytes = LiveBytes + GarbageBytes
//
// # Garbage collection
//
// At a threshold T nobody reads at or below T any more. Of a key's versions at
// or below T the newest, the anchor, is what a reader above T may still see;
// the rest is garbage, and so is the anchor if it is a tombstone and nothing
// is left below it. The anchor tombstone goes last: gone before what it hides,
// it would bring the hidden back to life.
//
// A pass from the threshold of the pass before visits only keys that have a
// version between the two: any other key has the anchor it had then. The
// time-interval filter finds those keys without reading the other blocks. It
// is only a hint: a filtered iterator may miss deletions and show what is gone
// (a filter hides blocks, tombstones of the engine included). What to delete
// is therefore decided per key by a second, unfiltered iterator.
//
// # Who may call
//
// An Iterator belongs to one goroutine; everything else has no state. Readers
// may run beside writers; two calls of GCPage for one span may not overlap,
// and the batch of a page must be applied before the next page is read.
//
// # Rejected
//
//   - Statistics from reading alone: a split or a metric would need a scan.
//   - A compaction filter instead of deletions: replicas would differ.
//   - The 12-byte version (wall and logical apart): 4 bytes more per version.
//   - pebble.Get for points: it allocates, and cannot stop at a timestamp.
package mvcc
