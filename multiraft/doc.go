// Package multiraft makes many groups agree. It knows no key.
//
// # Purpose
//
// A Host drives every raft group of a node. A group belongs to the shard with
// number id modulo W; a shard has an inbox and a list of groups with work. One
// function advances raft: Host.Poll. A pass takes the inbox, steps messages
// and runs tasks, ticks, flushes the state machines, and then, for all groups
// with work at once: collects their Readys, sends what may leave before the
// sync, writes all log entries and hard states in one batch whose sync runs
// beside the next passes, and applies what is committed in one unsynced batch.
// Production calls Poll from a worker for each shard; the simulator calls the
// same function from its loop.
//
// # Goroutines
//
// Everything of a group but Group.Enqueue belongs to the goroutine that polls
// its shard: the RawNode, the log, the StateMachine. AddGroup, RemoveGroup,
// Receive, Unreachable, DeliverSnapshot, Tick and Enqueue may be called from
// anywhere, a shard included: they put an item into an inbox and return.
// CompleteSync is called by one goroutine for each shard, the waiter.
//
// # Invariants
//
//   - A response of a MsgStorageAppend (an acknowledgement or a vote, to others
//     or to this node) is delivered only when all that the shard wrote before it
//     is durable, and the responses of a shard are delivered in order. The
//     queue of syncs in flight is therefore first in, first out, and an append
//     that carries nothing but responses stands in that queue too: sent at
//     once it would acknowledge entries that are not on disk yet.
//   - A change of term, leader or role reaches the StateMachine before any
//     message of the Ready that made it leaves (Group.publish).
//   - A proposal enters the log in the term that the StateMachine knows, or not
//     at all (Group.Propose compares with the RawNode's own state).
//   - A read waiter is confirmed by a ReadIndex that was issued after it came,
//     and only by a leader that has applied an entry of its own term. The
//     second half matters for a group with one voter: the library answers there
//     from its commit index, which a restart may have set back, since a hard
//     state in which only the commit index moved is not written.
//   - The log is cut at or below the applied index, in the batch that holds
//     that applied index or a later one; since one WAL holds both, no crash
//     keeps the cut and loses the state (truncate.go).
//   - A replica that a live promise binds to a leader neither votes nor
//     campaigns, but in a transfer that this leader began.
//   - A lease is published only while this replica leads, has applied an entry
//     of its term and has not begun a transfer in it; it is unpublished before a
//     message leaves that tells of the end.
//   - A replica that has a change of the configuration on disk knows, after any
//     crash, that the change before it is committed (logwrite.go): what it believes
//     in when it campaigns is never two changes behind another that is in force.
//   - While a snapshot is installed no append and no apply of its group runs.
//   - No map iteration and no clock influences what happens: the same inputs in
//     the same order give the same passes.
//
// # Bounds
//
// They are named in budget.go, with what happens when they are reached.
//
// # Rejected
//
//   - A goroutine or a raft.Node per group: it costs memory and a channel per
//     message, and no two groups could share a sync.
//   - Waiting for the sync inside the pass: a slow disk would stop heartbeats.
//   - Stopping the shard when too many syncs are in flight, for the same
//     reason. Writes then go to the log unsynced, their responses wait, and one
//     later sync covers all of them; only when too much is owed this way are
//     proposals refused and appends dropped (logwrite.go).
//   - Letting the library batch ReadIndex requests: one request for all waiters
//     of a group in a pass costs one heartbeat round.
//   - Replicating the truncated index as an entry: it costs a proposal for
//     every cut. A leader tells the safe index with its messages, every
//     replica cuts on its own.
//
// # Leases, sleep and elections
//
// The protocol is docs/LEASES.md; package support keeps the promises between
// nodes. Here is what concerns one group:
//
//	lease.go   the leader's side: what is published for reads (R1, R5, R8)
//	record.go  the follower's side: whom it follows, whom it refuses (R2, R6, R7)
//	wake.go    who is ticked: a group at rest is on no list
//	elect.go   who campaigns when, in turns
//	walk.go    news about a node, brought to its groups some in each pass
//	ask.go     questions to a leader that may be none any more
//	halt.go    a replica that can do nothing any more says so
//	park.go    a leader that waits for another group here, in vain, hands over
//
// Group.publish is the one place where a change of leadership is published
// before its messages leave, Group.mayVote the one where votes are filtered.
// Raft ticks leaders only, and those only while they have something to say; a
// follower's wait for a leader is counted here, so that ten thousand groups
// that lose their leader at once do not campaign at once.
package multiraft
