package multiraft

import (
	"fmt"
	"log/slog"

	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// raftLogger is what raft logs to, one for each shard. Debug and Info, which
// raft writes for every election and rejected append, are dropped before they
// are formatted. Warnings are bounded for each tick. Fatal and Panic mean that
// raft cannot go on without breaking its promises; they stop the node.
type raftLogger struct {
	logger *slog.Logger
	budget int // warnings left in this tick
}

func (*raftLogger) Debug(...any)          {}
func (*raftLogger) Debugf(string, ...any) {}
func (*raftLogger) Info(...any)           {}
func (*raftLogger) Infof(string, ...any)  {}

func (l *raftLogger) Warning(v ...any)            { l.warn(fmt.Sprint(v...)) }
func (l *raftLogger) Warningf(f string, v ...any) { l.warn(fmt.Sprintf(f, v...)) }

func (l *raftLogger) warn(text string) {
	if l.budget--; l.budget >= 0 {
		l.logger.Warn("raft warns", "op", "raft", "message", text)
	}
}

func (l *raftLogger) Error(v ...any) {
	l.logger.Error("raft reports an error", "op", "raft", "message", fmt.Sprint(v...))
}

func (l *raftLogger) Errorf(f string, v ...any) { l.Error(fmt.Sprintf(f, v...)) }

func (l *raftLogger) Fatal(v ...any)            { l.stop(fmt.Sprint(v...)) }
func (l *raftLogger) Fatalf(f string, v ...any) { l.stop(fmt.Sprintf(f, v...)) }
func (l *raftLogger) Panic(v ...any)            { l.stop(fmt.Sprint(v...)) }
func (l *raftLogger) Panicf(f string, v ...any) { l.stop(fmt.Sprintf(f, v...)) }

func (*raftLogger) stop(text string) { invariant.Failf("raft: %s", text) }
