package client

import (
	"time"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
)

// Version is the timestamp at which a value was written; later versions of a
// key are greater. 0 is no version.
type Version uint64

// options is what Open was asked for.
type options struct {
	dial           []grpc.DialOption
	openTimeout    time.Duration
	attemptTimeout time.Duration
	pingAfter      time.Duration
}

// DefaultOpenTimeout bounds Open when its context has no deadline.
const DefaultOpenTimeout = 10 * time.Second

// Option changes how a client is opened.
type Option func(*options)

// WithDialOptions adds grpc options, for example credentials or a stats
// handler for tracing. Without credentials connections are not encrypted.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, opts...) }
}

// WithOpenTimeout bounds how long Open waits for an endpoint that answers, in
// addition to its context; default 10 s if the context has no deadline.
func WithOpenTimeout(d time.Duration) Option {
	return func(o *options) { o.openTimeout = d }
}

// WithAttemptTimeout sets after what time without an answer a request is tried
// at another node although its node lives; default 2 s.
func WithAttemptTimeout(d time.Duration) Option {
	return func(o *options) { o.attemptTimeout = d }
}

// WithPingAfter sets after what silence a node that owes answers is asked for a
// sign of life; after as long again (or two round trips, if that is more) other
// nodes are asked as well. Default 100 ms.
func WithPingAfter(d time.Duration) Option {
	return func(o *options) { o.pingAfter = d }
}

// GetOption changes a Get.
type GetOption interface{ applyGet(*kv.Request) }

// ScanOption changes a Scan.
type ScanOption interface{ applyScan(*scan) }

// ReadOption changes a Get or a Scan.
type ReadOption interface {
	GetOption
	ScanOption
}

type atVersion Version

func (v atVersion) applyGet(r *kv.Request) { r.Timestamp = hlc.Timestamp(v) }
func (v atVersion) applyScan(s *scan)      { s.at = hlc.Timestamp(v) }

// AtVersion reads what was there at a version instead of what is there now. It
// fails with ErrTooOld when that has been garbage collected.
func AtVersion(v Version) ReadOption { return atVersion(v) }

type scanOption func(*scan)

func (f scanOption) applyScan(s *scan) { f(s) }

// WithLimit ends a scan after n rows; 0 or less means no limit.
func WithLimit(n int) ScanOption {
	return scanOption(func(s *scan) { s.limit = max(n, 0) })
}

// Reverse scans from end down to start.
func Reverse() ScanOption {
	return scanOption(func(s *scan) { s.flags |= kv.FlagReverse })
}

// KeysOnly leaves the values out.
func KeysOnly() ScanOption {
	return scanOption(func(s *scan) { s.flags |= kv.FlagKeysOnly })
}

// CompareOption changes what a CompareAndSwap, or a write of an atomic batch,
// compares with, or what it does then.
type CompareOption func(*kv.Op)

// IfVersion demands that the newest version of the key is v.
func IfVersion(v Version) CompareOption {
	return func(o *kv.Op) {
		o.Expect, o.ExpectedVersion, o.Expected = kv.ExpectVersion, hlc.Timestamp(v), nil
	}
}

// IfAbsent demands that the key does not exist.
func IfAbsent() CompareOption {
	return func(o *kv.Op) { o.Expect, o.Expected = kv.ExpectAbsent, nil }
}

// IfExists demands that the key exists, with any value.
func IfExists() CompareOption {
	return func(o *kv.Op) { o.Expect, o.Expected = kv.ExpectExists, nil }
}

// IfValue demands that the value is byte-equal to v.
func IfValue(v []byte) CompareOption {
	return func(o *kv.Op) { o.Expect, o.Expected = kv.ExpectValue, v }
}

// ThenDelete deletes the key instead of writing a value.
func ThenDelete() CompareOption {
	return func(o *kv.Op) { o.Delete, o.Value = true, nil }
}
