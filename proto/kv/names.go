package kv

import "strconv"

// String returns the verb as logs and metrics name it; an unknown one is
// "verb(99)".
func (v Verb) String() string {
	switch v {
	case VerbGet:
		return "get"
	case VerbPut:
		return "put"
	case VerbDelete:
		return "delete"
	case VerbCompareAndSwap:
		return "compare-and-swap"
	case VerbScan:
		return "scan"
	case VerbDeleteRange:
		return "delete-range"
	case VerbAtomic:
		return "atomic"
	case VerbReadTimestamp:
		return "read-timestamp"
	default:
		return "verb(" + strconv.Itoa(int(v)) + ")"
	}
}

// String returns the code as logs and metrics name it; an unknown one is
// "code(99)".
func (c Code) String() string {
	switch c {
	case CodeOK:
		return "ok"
	case CodeNotFound:
		return "not-found"
	case CodeConflict:
		return "conflict"
	case CodeNotLeader:
		return "not-leader"
	case CodeWrongRange:
		return "wrong-range"
	case CodeUnavailable:
		return "unavailable"
	case CodeOverloaded:
		return "overloaded"
	case CodeUnknownOutcome:
		return "unknown-outcome"
	case CodeCrossRange:
		return "cross-range"
	case CodeInvalid:
		return "invalid"
	case CodeTooLarge:
		return "too-large"
	case CodeReadOnly:
		return "read-only"
	case CodeBelowThreshold:
		return "below-threshold"
	case CodeInternal:
		return "internal"
	case CodeUnknownVerb:
		return "unknown-verb"
	default:
		return "code(" + strconv.Itoa(int(c)) + ")"
	}
}

// UserKey appends the internal key of a user's key to dst and returns the
// extended slice.
func UserKey(dst, key []byte) []byte { return append(append(dst, UserPrefix), key...) }

// StripUserKey returns the user's key in an internal one (it aliases it); ok
// is false if the key is not a user's.
func StripUserKey(internal []byte) (key []byte, ok bool) {
	if len(internal) == 0 || internal[0] != UserPrefix {
		return nil, false
	}
	return internal[1:], true
}
