// Package loadtest drives a store with a stream of operations and tells the
// truth about what came of it.
//
// # What is measured
//
// Latency runs from the intended start of an operation to its end, on the
// monotonic clock of this process. In the open loop (a rate is given)
// operation i is meant to start at i/rate, whether or not a client is free by
// then: a store that stalls is charged with the wait of everybody who would
// have come meanwhile. In the closed loop a client starts its next operation
// when the one before has ended, so a stall hides itself; the output says
// which loop it was. Operations that were due in the window and never started,
// because no client came free, are counted and reported.
//
// An operation is measured if its intended start lies after the warm-up.
// Rates count the successes that end within the window; percentiles hold every
// measured success, also those that end later. Failures are in no percentile;
// they are counted by kind, in the second when they end, and those of the
// warm-up by themselves. A read that finds nothing is a success, and counted
// as missing.
//
// # Availability
//
// The longest gap is the longest time without a success: over all, by
// operation, and by range of the store, by the range list of the start (what
// splits meanwhile is measured as one and marked). Where the store has no
// ranges the key space is cut into equal buckets. A range that is rarely asked
// has long gaps without any failure; the mean distance between its successes
// stands beside its gap, and only their ratio means something.
//
// # Probes
//
// Run draws records, so a range is asked when it happens to be; of a thousand
// ranges that says little about one. Probe asks every range at its own regular
// times, once at a time, and brackets the time for which it did not serve: from
// below by the longest wait since an operation was meant to start, from above by
// the longest gap between two successes. What a run sees before something is
// broken (the calm phase) is told apart from what it sees after.
//
// # Goroutines
//
// Run starts one per client and one that waits for them, and reports on its
// caller's. A few recorders, each with a lock, hold the histograms; clients
// share them, and the reporter empties them once a second. Probe starts one per
// range and kind of operation. All have ended when Run, or Probe, returns.
//
// # Rejected
//
// Keeping every sample (memory grows with success); one histogram for all
// (its lock is hot); a histogram per client (139 KB each); measuring from the
// actual start (it hides queues); drawing the zipfian by summing its series
// (seconds of start-up for large key spaces).
package loadtest
