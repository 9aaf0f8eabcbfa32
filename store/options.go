package store

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/cockroachkvs"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/invariant"
)

// Options configure a store. The zero value of a field means its default.
type Options struct {
	Dir             string
	FS              vfs.FS // default: the operating system's, with disk health checks
	Create          bool   // make a store where none is; otherwise a missing one is an error
	CacheBytes      int64  // Pebble block cache, default 256 MiB (simulated: 8 MiB)
	MemTableBytes   uint64 // default 64 MiB (simulated: 8 MiB)
	EntryCacheBytes int64  // node-wide, default 64 MiB
	// ReserveBytes is the disk space kept free, default 512 MiB: read-only mode
	// begins a quarter above it and ends half above it.
	ReserveBytes int64
	// SnapshotInMemoryBytes is the size up to which a received snapshot is kept
	// in memory and installed as one batch (default 100 KiB; negative: never).
	// Ingesting files below that size would flush a memtable for each of them.
	SnapshotInMemoryBytes int64
	Logger                *slog.Logger
	// Fatal is called when the store cannot keep a promise; it must not return
	// in production (default: log and os.Exit(7)). If it does return, the
	// goroutine that found the defect panics.
	Fatal func(msg string)
	// Simulated stores start a sync only when it is waited for and compact only
	// when told, so that a crash loses what was not waited for, replayably: until
	// MemTableBytes were written in one life, or half of it in one batch. Then
	// Pebble begins a new memtable and syncs what stands before it.
	Simulated bool
	Random    func() uint64 // store id, marks; default crypto/rand
	// Monotonic is a clock that never goes back, for SyncStalled; nil: the store
	// is never stalled. Any goroutine, under a lock that is held for nothing else.
	Monotonic func() time.Duration
	// AfterCommit is called after each commit, on its goroutine, with no lock of
	// the store held (nil: not at all). The simulator crashes nodes there, between
	// two writes of one pass.
	AfterCommit func()
}

// Defaults and fixed settings.
const (
	defaultCacheBytes       = 256 << 20
	defaultMemTableBytes    = 64 << 20
	defaultEntryCacheBytes  = 64 << 20
	defaultReserveBytes     = 512 << 20
	defaultSnapshotInMemory = 100 << 10
	simulatedCacheBytes     = 8 << 20
	simulatedMemTableBytes  = 8 << 20

	exitCodeFatal = 7

	// engineFormat is set explicitly: Pebble's default is its oldest format, in
	// which one flipped byte of the log silently ends it. It is a named version
	// and not FormatNewest, so that a new Pebble does not raise it unasked.
	engineFormat = pebble.FormatValueSeparation

	memTableStopWrites = 4         // memtables; small ones cost a third of all throughput
	minStallSlack      = 1 << 20   // bytes between two looks at the memtables' size
	l0Compaction       = 8         // level-0 depth at which compaction starts
	l0StopWrites       = 64        // level-0 depth at which Pebble stalls; refused long before
	l0Refuse           = 40        // depth at which WriteStalled begins,
	l0Accept           = 30        // and ends
	lBaseMaxBytes      = 256 << 20 // level 0 holds 8 memtables: a base of that order
	blockBytes         = 32 << 10
	indexBlockBytes    = 256 << 10
	bloomBitsPerKey    = 10
	deletionRate       = 128 << 20 // bytes per second, so that TRIM does not stall writes
	rangeDeleteDelay   = 10 * time.Second
	diskSlowAfter      = 5 * time.Second
)

// withDefaults returns the options with every default filled in.
func (o Options) withDefaults() Options {
	cache, mem := int64(defaultCacheBytes), uint64(defaultMemTableBytes)
	if o.Simulated {
		cache, mem = simulatedCacheBytes, simulatedMemTableBytes
	}
	setDefault(&o.CacheBytes, cache)
	setDefault(&o.MemTableBytes, mem)
	setDefault(&o.EntryCacheBytes, defaultEntryCacheBytes)
	setDefault(&o.ReserveBytes, defaultReserveBytes)
	setDefault(&o.SnapshotInMemoryBytes, defaultSnapshotInMemory)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Fatal == nil {
		logger := o.Logger
		o.Fatal = func(msg string) {
			logger.Error("store cannot keep its promises, stopping", "error", msg)
			os.Exit(exitCodeFatal)
		}
	}
	if o.Random == nil {
		o.Random = cryptoRandom
	}
	return o
}

func setDefault[T int64 | uint64](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

func cryptoRandom() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails: it ends the process instead
	return binary.LittleEndian.Uint64(b[:])
}

// pebbleOptions translates the options. The result has its defaults filled in,
// so that writers of sstables can use it too.
func (s *Store) pebbleOptions() *pebble.Options {
	schema := cockroachkvs.KeySchema
	o := &pebble.Options{
		FS:                          s.fs,
		Comparer:                    &cockroachkvs.Comparer,
		KeySchema:                   schema.Name,
		KeySchemas:                  sstable.MakeKeySchemas(&schema),
		BlockPropertyCollectors:     cockroachkvs.BlockPropertyCollectors,
		FormatMajorVersion:          engineFormat,
		CacheSize:                   s.o.CacheBytes,
		MemTableSize:                s.o.MemTableBytes,
		MemTableStopWritesThreshold: memTableStopWrites,
		L0CompactionThreshold:       l0Compaction,
		L0StopWritesThreshold:       l0StopWrites,
		LBaseMaxBytes:               lBaseMaxBytes,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
		Logger:                      engineLogger{s},
		EventListener:               s.eventListener(),
	}
	for i := range o.Levels {
		l := &o.Levels[i]
		l.BlockSize, l.IndexBlockSize = blockBytes, indexBlockBytes
		l.Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
		l.FilterPolicy, l.FilterType = bloom.FilterPolicy(bloomBitsPerKey), pebble.TableFilter
	}
	// The last level holds nine tenths of the data: its filters would cost most
	// of the memory and save little, since most lookups end there.
	o.Levels[len(o.Levels)-1].FilterPolicy = pebble.NoFilterPolicy
	if s.o.Simulated {
		// Whatever Pebble does by itself and in its own time is off.
		o.DisableAutomaticCompactions = true
		o.DisableTableStats = true
		o.L0StopWritesThreshold = 1 << 20
	} else {
		o.TargetByteDeletionRate = deletionRate
		o.FlushDelayDeleteRange = rangeDeleteDelay
	}
	o.EnsureDefaults()
	return o
}

// eventListener keeps the metrics and the foresight of stalls. Handlers run
// under Pebble's locks: they only touch atomics and log.
func (s *Store) eventListener() *pebble.EventListener {
	m := &s.metrics
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			m.backgroundErrors.Add(1)
			if errors.Is(err, syscall.ENOSPC) {
				s.readOnly.Store(true) // at once; CheckDisk ends it
			}
			s.o.Logger.Error("engine background error", "op", "flush or compaction", "error", err)
		},
		DiskSlow:   s.onDiskSlow,
		WALCreated: func(pebble.WALCreateInfo) { s.marks.want() },
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			s.stalled.Store(true)
			m.writeStalls.Add(1)
			s.o.Logger.Warn("engine stalls writes", "reason", i.Reason)
		},
		WriteStallEnd: func() { s.stalled.Store(false) },
		LowDiskSpace: func(i pebble.LowDiskSpaceInfo) {
			m.lowDisk.Add(1)
			s.o.Logger.Warn("disk space runs low", "free", i.AvailBytes, "total", i.TotalBytes)
		},
	}
}

// onDiskSlow must not do I/O: it runs on the goroutine that watches the disk.
func (s *Store) onDiskSlow(vfs.DiskSlowInfo) { s.metrics.diskSlow.Add(1) }

// engineLogger passes Pebble's messages on.
type engineLogger struct{ s *Store }

func (l engineLogger) Infof(format string, args ...any) {
	l.s.o.Logger.Debug("engine", "text", fmt.Sprintf(format, args...))
}

func (l engineLogger) Errorf(format string, args ...any) {
	l.s.o.Logger.Error("engine", "error", fmt.Sprintf(format, args...))
}

// Fatalf never returns: Pebble goes on after a Fatalf that does, with a commit
// pipeline that has lost a commit.
func (l engineLogger) Fatalf(format string, args ...any) {
	l.s.fatal(fmt.Sprintf(format, args...))
}

// fatal reports that the store cannot keep a promise, and does not return.
func (s *Store) fatal(msg string) {
	s.o.Fatal(fmt.Sprintf("store %q: %s", s.o.Dir, msg))
	invariant.Failf("store %q: %s", s.o.Dir, msg)
}
