package multiraft

import "sync/atomic"

// Metrics are sums over the shards of a host since it was made, gauges as they
// are now.
type Metrics struct {
	Passes             uint64
	Tasks              uint64
	TasksRefused       uint64 // inbox over its byte budget
	Syncs              uint64 // log syncs started
	SyncsDeferred      uint64 // log writes left to a later sync, too many were in flight
	MessagesIn         uint64
	MessagesOut        uint64
	MessagesDropped    uint64 // received, but not for us, not now, or no room
	MessagesHeld       uint64 // kept for a group that was not born yet
	MessagesUnsent     uint64 // refused by the transport, or no address known
	FramesRefused      uint64 // stamp too far ahead or above the durable bound
	UnbornAnswers      uint64 // leaders told that a replica needs a snapshot
	GoneNotices        uint64 // senders told that a replica is gone
	Elections          uint64 // won here
	Campaigns          uint64 // begun here
	Ticks              uint64 // of groups
	Proposals          uint64 // accepted, of one entry or more
	ProposalsDropped   uint64
	EntriesProposed    uint64
	EntriesAppended    uint64
	EntriesApplied     uint64
	Reads              uint64 // waiters
	ReadRequests       uint64 // ReadIndex rounds
	Truncations        uint64
	ForcedTruncations  uint64 // log too long: laggards were cut off
	SnapshotsSent      uint64
	SnapshotsRefused   uint64 // no token, no address: tried again later
	SnapshotsFailed    uint64
	SnapshotsInstalled uint64
	HaltedReplicas     uint64

	Groups       int64 // gauge
	Awake        int64 // gauge: groups that are ticked
	InboxBytes   int64 // gauge
	SnapshotsOut int64 // gauge
}

// metrics are counted by a shard alone, so the atomics are never contended.
type metrics struct {
	passes, tasks, tasksRefused, syncs, syncsDeferred        atomic.Uint64
	messagesIn, messagesOut, messagesDropped, messagesHeld   atomic.Uint64
	messagesUnsent, framesRefused, unbornAnswers             atomic.Uint64
	goneNotices, elections, proposals, proposalsDropped      atomic.Uint64
	entriesProposed, entriesAppended, entriesApplied, reads  atomic.Uint64
	readRequests, truncations, forcedTruncations             atomic.Uint64
	snapshotsSent, snapshotsRefused, snapshotsFailed, halted atomic.Uint64
	snapshotsInstalled                                       atomic.Uint64
	campaigns, ticks                                         atomic.Uint64
	groups, awake                                            atomic.Int64
}

// Metrics returns the counters. Any goroutine.
func (h *Host) Metrics() Metrics {
	var m Metrics
	for _, s := range h.shards {
		c := &s.metrics
		m.Passes += c.passes.Load()
		m.Tasks += c.tasks.Load()
		m.TasksRefused += c.tasksRefused.Load()
		m.Syncs += c.syncs.Load()
		m.SyncsDeferred += c.syncsDeferred.Load()
		m.MessagesIn += c.messagesIn.Load()
		m.MessagesOut += c.messagesOut.Load()
		m.MessagesDropped += c.messagesDropped.Load()
		m.MessagesHeld += c.messagesHeld.Load()
		m.MessagesUnsent += c.messagesUnsent.Load()
		m.FramesRefused += c.framesRefused.Load()
		m.UnbornAnswers += c.unbornAnswers.Load()
		m.GoneNotices += c.goneNotices.Load()
		m.Elections += c.elections.Load()
		m.Campaigns += c.campaigns.Load()
		m.Ticks += c.ticks.Load()
		m.Awake += c.awake.Load()
		m.Proposals += c.proposals.Load()
		m.ProposalsDropped += c.proposalsDropped.Load()
		m.EntriesProposed += c.entriesProposed.Load()
		m.EntriesAppended += c.entriesAppended.Load()
		m.EntriesApplied += c.entriesApplied.Load()
		m.Reads += c.reads.Load()
		m.ReadRequests += c.readRequests.Load()
		m.Truncations += c.truncations.Load()
		m.ForcedTruncations += c.forcedTruncations.Load()
		m.SnapshotsSent += c.snapshotsSent.Load()
		m.SnapshotsRefused += c.snapshotsRefused.Load()
		m.SnapshotsFailed += c.snapshotsFailed.Load()
		m.SnapshotsInstalled += c.snapshotsInstalled.Load()
		m.HaltedReplicas += c.halted.Load()
		m.Groups += c.groups.Load()
	}
	m.InboxBytes = h.inboxBytes.Load()
	m.SnapshotsOut = h.snapshots.sending()
	return m
}
