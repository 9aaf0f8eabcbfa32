package server

import "github.com/flotilla-kv/flotilla/multiraft"

// raft sends the figures of the raft groups, of all of them together.
func (e emitter) raft(m multiraft.Metrics) {
	e.gauge("raft_groups", "Raft groups on this node.", float64(m.Groups))
	e.gauge("raft_groups_awake", "Groups that are ticked; the others rest.", float64(m.Awake))
	e.gauge("raft_inbox_bytes", "Bytes of messages and tasks that wait.", float64(m.InboxBytes))
	e.gauge("raft_snapshots_sending", "Snapshots on their way out.", float64(m.SnapshotsOut))

	e.total("raft_passes", "Passes over the groups that had work.", m.Passes)
	e.total("raft_ticks", "Ticks of groups.", m.Ticks)
	e.total("raft_tasks", "Tasks run on shards.", m.Tasks)
	e.total("raft_tasks_refused", "Tasks refused, the inbox was full.", m.TasksRefused)
	e.total("raft_log_syncs", "Syncs of the log begun.", m.Syncs)
	e.total("raft_log_syncs_deferred", "Log writes left to a later sync.", m.SyncsDeferred)

	e.total("elections_started", "Elections begun here, but those that a transfer "+
		"of leadership began.", m.Campaigns)
	e.total("elections_won", "Elections won here, also those of transfers: this may be "+
		"more than were started.", m.Elections)

	e.total("raft_messages_stepped", "Messages given to groups.", m.MessagesIn)
	e.total("raft_messages_emitted", "Messages that groups sent.", m.MessagesOut)
	e.total("raft_messages_ignored", "Messages not for this node, not now, or without room.",
		m.MessagesDropped)
	e.total("raft_messages_held", "Messages kept for a group not born yet.", m.MessagesHeld)
	e.total("raft_messages_unsent", "Messages that the transport refused.", m.MessagesUnsent)
	e.total("raft_frames_refused", "Frames whose stamp was not adopted.", m.FramesRefused)
	e.total("raft_unborn_answers", "Leaders told that a replica needs a snapshot.",
		m.UnbornAnswers)
	e.total("raft_gone_notices", "Senders told that a replica is gone.", m.GoneNotices)

	e.total("raft_proposals", "Proposals accepted.", m.Proposals)
	e.total("raft_proposals_dropped", "Proposals refused.", m.ProposalsDropped)
	e.total("raft_entries_proposed", "Entries proposed.", m.EntriesProposed)
	e.total("raft_entries_appended", "Entries written to the log.", m.EntriesAppended)
	e.total("raft_entries_applied", "Entries applied.", m.EntriesApplied)
	e.total("raft_reads", "Reads that asked a quorum.", m.Reads)
	e.total("raft_read_rounds", "Rounds that confirmed them.", m.ReadRequests)
	e.total("raft_truncations", "Cuts of logs.", m.Truncations)
	e.total("raft_truncations_forced", "Cuts that left a follower behind.", m.ForcedTruncations)

	e.total("raft_snapshots_sent", "Snapshots that groups sent.", m.SnapshotsSent)
	e.total("raft_snapshots_refused", "Snapshots that had to wait.", m.SnapshotsRefused)
	e.total("raft_snapshots_failed", "Snapshots that did not arrive.", m.SnapshotsFailed)
	e.total("raft_snapshots_installed", "Snapshots installed.", m.SnapshotsInstalled)
	e.total("raft_replicas_halted", "Replicas halted by an entry that they could not apply.",
		m.HaltedReplicas)
}
