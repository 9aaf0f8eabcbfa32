// Package kv is the language between clients and nodes on the batch stream:
// requests, responses and the hand-written codec of their frames.
//
// A client opens one bidirectional stream per node. The first frame each way
// is a Hello. Then frames of requests go one way and frames of responses the
// other; a response names its request by ID and may come out of order. Every
// frame carries a hybrid logical clock stamp, which the receiver adopts before
// it handles anything in the frame.
//
// Keys here are internal keys: a user's key has the prefix UserPrefix. The
// client adds and strips it; a node refuses other keys from clients.
//
// Memory: a decoded request or response aliases the frame's bytes, which the
// decoder hands over: nobody writes to them again, the garbage collector frees
// them with the last alias.
package kv

import (
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
)

// The internal keyspace. Everything below SystemPrefix is local to a node and
// never routed.
const (
	SystemPrefix = 0x10 // range 1: [0x10, 0x20)
	UserPrefix   = 0x20 // range 2 at first: [0x20, 0x21)
	EndPrefix    = 0x21
)

// Limits. Sizes nest: value < entry < frame < uncommitted budget.
const (
	MaxKeyBytes          = 65535    // of a user's key
	DefaultMaxValueBytes = 8 << 20  // flag of a node
	MaxFrameBytes        = 32 << 20 // of an encoded frame
	MaxScanBytes         = 4 << 20  // of one page
	MaxScanLimit         = 10_000   // rows of one page
	MaxAtomicOps         = 1024
)

// Verb says what a request does.
type Verb uint8

// The verbs. Numbers are part of the protocol; an unknown verb fails its
// request, not the stream.
const (
	VerbGet            Verb = 1
	VerbPut            Verb = 2
	VerbDelete         Verb = 3
	VerbCompareAndSwap Verb = 4 // compares per Expect, then writes Value (or deletes: FlagDelete)
	VerbScan           Verb = 5 // [Key, End) at Timestamp (0: the leader fixes it), both ways
	VerbDeleteRange    Verb = 6 // a page of [Key, End): keys whose newest version is <= Timestamp
	VerbAtomic         Verb = 7 // Ops, all in one range, all or nothing
	VerbReadTimestamp  Verb = 8 // the leader's timestamp for scans and range deletions; a read
)

// Expect says what a compare-and-swap compares with.
type Expect uint8

// What a compare-and-swap compares with.
const (
	ExpectNothing Expect = 0 // no comparison (puts and deletes in Ops)
	ExpectAbsent  Expect = 1 // the key must not exist
	ExpectValue   Expect = 2 // the value must be byte-equal to Expected
	ExpectVersion Expect = 3 // the newest version must be ExpectedVersion
	ExpectExists  Expect = 4 // the key must exist
)

// Flags of a request.
const (
	FlagDelete   = 1 << 0 // compare-and-swap or op deletes instead of writing Value
	FlagReverse  = 1 << 1 // scan from End down to Key
	FlagKeysOnly = 1 << 2 // scan without values
)

// Identity names a write for all time so that it applies once whichever of its
// attempts arrives first or last. Floor is a server timestamp that the client
// had received before the first attempt; the write's versions lie above it.
type Identity struct {
	Client    uint64 // random, drawn when the client opens; 0: none
	Sequence  uint64 // of the client's calls
	Operation uint32 // within the call (index in an atomic batch is added by the server)
	Floor     hlc.Timestamp
}

// Op is one write of an atomic batch.
type Op struct {
	Key             []byte
	Value           []byte
	Expected        []byte
	ExpectedVersion hlc.Timestamp
	Expect          Expect
	Delete          bool
}

// Request is one operation.
type Request struct {
	ID              uint64 // unique on its stream
	Verb            Verb
	Flags           uint8
	Expect          Expect
	Range           ids.RangeID    // where the client believes Key lives; 0: route by key
	Generation      ids.Generation // of the descriptor that the client used; 0: unknown
	Identity        Identity       // writes only
	Timestamp       hlc.Timestamp  // reads and range deletions; 0: the leader fixes one
	ExpectedVersion hlc.Timestamp
	Limit           uint32 // rows; 0: MaxScanLimit
	Key             []byte
	End             []byte
	Value           []byte
	Expected        []byte
	Ops             []Op
}

// Code is the verdict of a response.
type Code uint8

// The verdicts. "Not applied" means: not by this attempt, and never will be.
const (
	CodeOK             Code = 0
	CodeNotFound       Code = 1  // get: no such key
	CodeConflict       Code = 2  // compare failed; Value, Found and Timestamp say what is there
	CodeNotLeader      Code = 3  // Leader says who may be; MaybeApplied says if the outcome is open
	CodeWrongRange     Code = 4  // key outside the range, or old generation; see Descriptors
	CodeUnavailable    Code = 5  // not now (no quorum, clock bound): retry after RetryAfterMillis
	CodeOverloaded     Code = 6  // refused before evaluation: retry after RetryAfterMillis
	CodeUnknownOutcome Code = 7  // cannot be known any more
	CodeCrossRange     Code = 8  // atomic batch spans ranges
	CodeInvalid        Code = 9  // the request is wrong; Message says how
	CodeTooLarge       Code = 10 // key, value or batch above its limit
	CodeReadOnly       Code = 11 // the node's disk is nearly full
	CodeBelowThreshold Code = 12 // timestamp at or below the garbage collection threshold
	CodeInternal       Code = 13 // a defect; Message has details
	CodeUnknownVerb    Code = 14
)

// KeyValue is one row of a scan.
type KeyValue struct {
	Key     []byte
	Value   []byte
	Version hlc.Timestamp
}

// Response answers one request.
type Response struct {
	ID               uint64
	Code             Code
	Found            bool // get, conflict: a value is there
	More             bool // scan, range deletion: resume at ResumeKey
	MaybeApplied     bool // with NotLeader, Unavailable: the attempt may still apply
	Leader           ids.NodeID
	RetryAfterMillis uint32
	Count            uint32        // range deletion: keys deleted by this identity's page
	Timestamp        hlc.Timestamp // version written, version read, or timestamp of the scan
	Value            []byte
	ResumeKey        []byte // scan forward: next key; reverse: exclusive end of the rest
	Rows             []KeyValue
	Descriptors      [][]byte // marshalled metapb.RangeDescriptor
	Message          string
}
