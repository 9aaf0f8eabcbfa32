package multiraft

// Poll runs one pass of a shard and reports whether more work is pending.
// Production calls it from the shard's worker, the simulator from its loop.
func (h *Host) Poll(shard int) (more bool) {
	s := h.shards[shard]
	if h.failure.Load() != nil {
		s.failTasks()
		return false
	}
	s.metrics.passes.Add(1)
	s.checkStore()
	items, tick := s.inbox.take(s.spareItems[:0])
	s.handle(items)
	clear(items)
	s.spareItems = items[:0]
	if cap(items) > maxSpareItems {
		s.spareItems = nil // of a burst, such as a start
	}
	if tick {
		s.tick()
	}
	s.spread()
	s.elect()
	s.flush()
	for round := 0; round < maxRounds && h.failure.Load() == nil; round++ {
		if len(s.work) == 0 && len(s.appends) == 0 && !s.canPayOwed() {
			break
		}
		s.collect()
		s.send() // a leader's appends leave before its own fsync
		s.writeLog()
		s.apply()
	}
	s.send()
	work, _ := s.inbox.pending()
	left := len(s.work) > 0 || len(s.appends) > 0 || len(s.walks) > 0 || s.canPayOwed() ||
		s.mayElect()
	s.more.Store(left)
	return (work || left) && h.failure.Load() == nil
}

// checkStore asks once in a pass whether the store has room for writes.
func (s *shard) checkStore() {
	st := s.host.cfg.Store
	s.refuseAppends = st.WriteStalled() || s.owedBytes > maxOwedBytes
	s.refuseProposals = s.refuseAppends || st.ReadOnly()
}

// handle does what the inbox held, in order.
func (s *shard) handle(items []item) {
	bytes := 0
	for i := range items {
		it := &items[i]
		bytes += it.bytes
		switch it.kind {
		case itemMessage:
			s.receive(it.from, &it.msg)
		case itemTask:
			s.runTask(it.group, it.task)
		case itemCompletion:
			s.inbox.handled()
			s.deliver(it.responses)
		case itemControl:
			it.control(s)
		}
	}
	if bytes != 0 {
		s.host.inboxBytes.Add(-int64(bytes))
	}
}

func (s *shard) runTask(g *Group, t Task) {
	s.metrics.tasks.Add(1)
	t.Run()
	if !g.ranTasks {
		g.ranTasks = true
		s.flushes = append(s.flushes, g)
	}
}

// flush lets the state machines propose what their tasks evaluated.
func (s *shard) flush() {
	for i, g := range s.flushes {
		g.ranTasks = false
		g.cfg.Machine.Flush()
		s.queue(g)
		s.flushes[i] = nil
	}
	s.flushes = s.flushes[:0]
}

// failTasks runs the tasks that wait after the store failed, so that nobody
// waits for them for ever; what they propose is refused. All else is forgotten.
func (s *shard) failTasks() {
	items, _ := s.inbox.take(nil)
	for i := range items {
		if items[i].kind == itemTask {
			s.runTask(items[i].group, items[i].task)
		}
	}
	s.flush()
}
