package multiraft

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Defaults of Config.
const (
	defaultTickInterval   = 100 * time.Millisecond
	defaultElectionTicks  = 10
	defaultHeartbeatTicks = 2

	// defaultInboxBytes bounds what waits in the inboxes of a node. Beyond it
	// appends with entries are dropped (raft sends them again) and tasks refused
	// with ErrOverloaded; beyond twice of it every message is dropped, so that
	// heartbeats and votes outlive an overload of data.
	defaultInboxBytes = 64 << 20
	// defaultMaxEntryBytes bounds the entries of one MsgApp.
	defaultMaxEntryBytes = 64 << 10
	// defaultUncommittedBytes bounds a leader's uncommitted tail per group;
	// beyond it Propose returns ErrDropped.
	defaultUncommittedBytes = 8 << 20
	// Flow control per follower; beyond them the leader waits for answers.
	defaultInflightMessages = 128
	defaultInflightBytes    = 8 << 20
	// maxCommittedBytes bounds what is handed out for apply at once per group.
	maxCommittedBytes = 2 << 20

	defaultTruncateEntries = 64
	defaultMaxLogBytes     = 16 << 20
	// defaultSnapshotsOut bounds the snapshots being sent. Beyond it groups queue for
	// their turn (turns.go), and raft is told that the sending failed and tries again
	// after a heartbeat.
	defaultSnapshotsOut = 2
)

// Bounds that are not configured.
const (
	// wakeTokens is the size of a notify channel: one token says "look again".
	wakeTokens = 1
	// maxSpareItems is the largest inbox buffer that is kept for reuse.
	maxSpareItems = 4096
	// maxPendingTicks caps the ticks that wait for a shard, so that an
	// overloaded node does not catch up in bursts; more are forgotten.
	maxPendingTicks = 2
	// maxRounds bounds how often one pass collects Readys; the rest is left to
	// the next pass, after the inbox was looked at.
	maxRounds = 4
	// maxSyncs bounds the log syncs in flight of a shard. At the bound writes
	// go unsynced and are owed a later sync that covers all of them.
	maxSyncs = 32
	// maxOwedBytes bounds what is owed a sync. Beyond it proposals are refused
	// and appends with entries dropped.
	maxOwedBytes = 16 << 20
	// maxReadWaiters bounds the reads that wait in a group; beyond it a read
	// fails with ErrOverloaded.
	maxReadWaiters = 1 << 16
	// readRetryTicks is how long an unanswered ReadIndex may take before
	// another one is issued.
	readRetryTicks = 5
	// maxTurns bounds the groups that queue to send a snapshot; one that does not ask
	// again within turnHeartbeats leaves the queue.
	maxTurns       = 1024
	turnHeartbeats = 5
	// maxInstalls bounds the snapshot installs that run or wait on a node.
	// Beyond it a delivered snapshot is discarded; the leader sends another.
	maxInstalls = 16
	// backgroundWorkers is the number of goroutines that run installs.
	backgroundWorkers = 2
	// groupsPerPass bounds the groups that one pass tells news about a node; the
	// rest follows in later passes.
	groupsPerPass = 1024
	// maxElections bounds the elections under way of a shard, campaignsPerPass
	// those that one pass begins; other groups wait for their turn.
	maxElections     = 512
	campaignsPerPass = 128
	// backupTicks is how much later each further rank campaigns, and
	// nomineesPerTick by how many groups that wait for their turn a tick more.
	backupTicks     = 4
	nomineesPerTick = 256
	// releaseTicks is how long, times its rank, a replica waits for the successor
	// of a leader that said it has left.
	releaseTicks = 3
	// maxLearnedPeers bounds the addresses that a group learned from messages
	// rather than from its descriptor; the oldest is forgotten.
	maxLearnedPeers = 8
	// maxWarningsPerTick bounds what raft may log of a shard in a tick.
	maxWarningsPerTick = 8

	// Messages for groups that this node does not have wait for their birth,
	// for unbornHoldTicks, within these bounds; beyond them they are dropped.
	unbornHoldTicks    = 30
	maxUnbornRanges    = 1024 // per node
	maxUnbornMessages  = 16   // per range
	maxUnbornBytes     = 64 << 10
	unbornForgetFactor = 2 // silent for so many hold times: the record goes

	// activeElections is how many election timeouts a replica may be silent
	// before its progress no longer keeps the log from being cut.
	activeElections = 3
)

// Rough sizes that the byte budget counts beside the payload.
const (
	messageOverhead = 192
	entryOverhead   = 64
	taskOverhead    = 128
)

// messageBytes estimates what a message keeps in memory.
func messageBytes(m *raftpb.Message) int {
	n := messageOverhead
	for _, e := range m.GetEntries() {
		n += entryOverhead + len(e.GetData())
	}
	return n
}
