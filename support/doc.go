// Package support keeps the promises between pairs of nodes that leases, failure
// detection and idleness rest on.
//
// # Purpose
//
// Node A leads groups, node B has other voters of them. Instead of a heartbeat
// for each group there is one for each pair: A asks B for support every Interval,
// and B promises that for D no group of B that follows a leader on A helps to
// elect anybody else. While a quorum of a group's voters' nodes support A, A reads
// locally, B's replicas need no election timer, and an idle group costs nothing.
// Stated so it is unsafe; nine rules make it safe. docs/LEASES.md has them all
// with their proof. This package holds what concerns pairs of nodes; what concerns
// groups (records, acks, votes) is in multiraft.
//
// # Where each rule is
//
//	R3 withdrawn for good   Table.extend, Table.withdraw; lives: Table.orderLives
//	R4 time                 Table.countsUntil (A), Table.extend (B); freeze: Peer.Counts
//	R6 restart of B         Config.bootWait, Table.MayVote, Table.nextEpoch, Table.answer
//	R7 digest               Table.compareDigests
//	R9a asked ceiling       Table.wantedCeiling
//	R9b granted ceiling     Table.grantCeiling
//	R9c reads below it      Peer.Counts
//	R9d passed at the end   Table.withdraw
//	R9g passed at a stop    Table.Ceiling (and hlc.Hybrid.Seal)
//
// # Invariants
//
//   - While A counts an epoch of B (Peer.Counts), B has not withdrawn it
//     (Peer.Promise), or has restarted and is in its boot wait.
//   - A promise is a flag that only a withdrawal clears, and that never comes back
//     with the same epoch. No other code compares a promise with a clock: B may
//     withdraw later than it must, never earlier.
//   - When a promise that expired is seen gone, the hybrid clock is at or above
//     its ceiling; the ceiling is at or below the durable bound when it is granted.
//
// # Who may call
//
// Everything may be called on any goroutine. Nothing blocks and nothing runs by
// itself: rpc calls Request, HandleRequest and HandleGrant as datagrams come and go, one
// goroutine of the server calls Expire. One lock guards all pairs; a node has few
// peers, and each costs it some forty short calls a second. Read paths take no
// lock: what they need is in atomics. Callbacks run one at a time, in order, on
// whichever goroutine brought the news, without the lock.
//
// # Rejected
//
// A promise that ends by itself when the clock says so: each place that asks
// would have to pass the ceiling and remember the end, under a lock. Now there is
// one such place. Extending only promises that are not overdue: nothing has
// followed from the end of one that was not withdrawn, and a starved node would
// break promises to peers that are well. Promises on disk: a restart would read
// instead of wait, but each withdrawal would cost a sync, in the very moment that
// decides how long a failover takes. Acks that expire: then every group costs
// something for every interval, which is what this package is there to avoid.
package support
