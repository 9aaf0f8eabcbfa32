package sim

import (
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/store"
)

// powerCut is what a machine panics with when it loses power in the middle of
// a pass; survives recovers it.
type powerCut struct {
	disk *vfs.MemFS // what the disk holds
}

// afterCommit is called by the store after each commit. A doomed machine loses
// power between two of them: what was committed before may have reached the
// disk in full, as the operating system pleases, or only as far as it was
// synced. Nothing that the process would have done next happens.
func (n *node) afterCommit() {
	if n.doom == 0 {
		return
	}
	if n.doom--; n.doom > 0 {
		return
	}
	if chance(n.sim.nemesisRand, 0.7) {
		if err := n.store.Sync(); err != nil {
			n.sim.fail("sync %s before its power is cut: %v", n.id, err)
		}
	}
	//lint:allow panic unwinds the pass that the power cut ends; survives recovers it
	panic(powerCut{disk: n.fs.CrashClone(vfs.CrashCloneCfg{})})
}

// survives runs f and says whether the machine still has power after it.
func (n *node) survives(f func()) (alive bool) {
	defer func() {
		if p := recover(); p != nil {
			cut, ok := p.(powerCut)
			if !ok {
				panic(p) //lint:allow panic another one's panic goes on
			}
			n.sim.count("crashes_between_commits")
			n.sim.loop.tracef("%s loses power between two commits", n.id)
			n.die(cut.disk)
			n.sim.comeBack(n)
		}
	}()
	f()
	return true
}

// crash ends the process between two events and loses what was not synced.
func (n *node) crash() { n.die(n.fs.CrashClone(vfs.CrashCloneCfg{})) }

func (n *node) die(disk *vfs.MemFS) {
	n.alive, n.doom = false, 0
	n.incarnation++
	n.closeTable()
	closeStore(n.store)
	n.fs, n.store, n.host, n.table, n.driver = disk, nil, nil, nil, nil
	n.promises = nil
	n.sim.lostNode(n.id)
}

// closeTable ends the cache of hot rows and counts what it served.
func (n *node) closeTable() {
	if n.table == nil {
		return
	}
	n.table.SettleRowCache()
	n.table.Close()
	n.sim.counters["load_splits"] += int(n.table.LoadSplits())
	n.sim.counters["reads_of_hot_rows"] += int(n.table.RowCache().Hits)
}

// closeStore frees what a dead process's store holds. Pebble objects to the
// iterators that a power cut left open; nobody needs them.
func closeStore(s *store.Store) {
	defer func() { _ = recover() }()
	_ = s.Close()
}
