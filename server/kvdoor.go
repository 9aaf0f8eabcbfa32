package server

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// refuse returns the answer to a request that may not come in: its frame's
// stamp was not adopted, or it touches keys that are not a user's. nil: it may.
func refuse(r *kv.Request, stamp error) *kv.Response {
	if stamp != nil {
		return &kv.Response{
			ID: r.ID, Code: kv.CodeUnavailable, RetryAfterMillis: retryAfterBound,
			Message: stamp.Error(),
		}
	}
	if fault := foreignKeys(r); fault != "" {
		return &kv.Response{ID: r.ID, Code: kv.CodeInvalid, Message: fault}
	}
	return nil
}

// foreignKeys says what is wrong with the keys of a request, "" if nothing. The
// node's own records and the system range have other prefixes, so this check
// is all that keeps clients from them.
func foreignKeys(r *kv.Request) string {
	switch r.Verb {
	case kv.VerbAtomic:
		for i := range r.Ops {
			if fault := foreignKey(r.Ops[i].Key); fault != "" {
				return fault
			}
		}
		// Its own key, if any, only routes it.
		if len(r.Key) == 0 {
			return ""
		}
		return foreignKey(r.Key)
	case kv.VerbScan, kv.VerbDeleteRange:
		if len(r.Key) == 0 || r.Key[0] != kv.UserPrefix {
			return "the span begins outside the user keys"
		}
		return foreignEnd(r.End)
	case kv.VerbReadTimestamp:
		if len(r.End) > 0 {
			if fault := foreignEnd(r.End); fault != "" {
				return fault
			}
		}
		return foreignKey(r.Key)
	}
	return foreignKey(r.Key)
}

func foreignKey(key []byte) string {
	switch {
	case len(key) == 0 || key[0] != kv.UserPrefix:
		return "the key is not a user key"
	case len(key) > kv.MaxKeyBytes+1:
		return fmt.Sprintf("the key has %d bytes, at most %d are allowed",
			len(key)-1, kv.MaxKeyBytes)
	}
	return ""
}

func foreignEnd(end []byte) string {
	if len(end) == 1 && end[0] == kv.EndPrefix || len(end) > 0 && end[0] == kv.UserPrefix {
		return ""
	}
	return "the span ends outside the user keys"
}
