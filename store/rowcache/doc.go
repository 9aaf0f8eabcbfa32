// Package rowcache holds hot rows in front of Pebble: the newest version of
// keys, found in a fifth of a microsecond where the engine needs one or more,
// and more when level 0 is deep or a block is not in memory.
//
// # The rule
//
// A row counts only while its stamp equals the stamp that the reader brings.
// The stamp stands for everything that could have changed the row since; who
// reads works it out without the engine. Package ranges makes stamps and says
// when a row may be put in (ranges/rows.go). So it does not matter that the
// library underneath drops, reorders and delays what is put into it (of two quick
// Sets of a new key the older one stays): a lost or late row can only be a miss.
// Nothing here rests on removing anything; Del is not called at all.
//
// # The library
//
// ristretto decides what is worth keeping (TinyLFU) and bounds the bytes. It is
// given the hash as the key, which it does not store; the row has the key itself
// and is compared, so a collision is a miss, too. Its costs are ours: key, value
// and rowOverhead, which was measured. It runs a goroutine of its own from New to
// Close, the one exception to the rule that constructors start none.
//
// All of a Cache may be called on any goroutine. A nil *Cache is one that is off.
//
// # Rejected
//
// A stamp per range (each write would empty the range's rows); a stamp per row,
// kept by the writer (memory for each key written, and a map in its way);
// absent keys as rows (a scan of guesses would drive the hot rows out).
package rowcache
