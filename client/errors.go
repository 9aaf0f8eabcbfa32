package client

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// What a call may fail with, for errors.Is.
var (
	// ErrNotFound: there is no such key.
	ErrNotFound = errors.New("not found")
	// ErrConflict: a compare failed, nothing was written. errors.As with
	// *ConflictError tells what is there.
	ErrConflict = errors.New("conflict")
	// ErrUnavailable: the cluster did not serve the call by the deadline. A
	// write that fails with it was not applied and never will be.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnknownOutcome: a write may have been applied, may yet be, or not.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrCrossRange: the keys of an atomic batch lie in more than one range.
	ErrCrossRange = errors.New("keys lie in more than one range")
	// ErrInvalid: the request is wrong, for example an empty key.
	ErrInvalid = errors.New("invalid")
	// ErrTooLarge: a key, value or batch is above its limit.
	ErrTooLarge = errors.New("too large")
	// ErrTooOld: the version asked for has been garbage collected. A scan that
	// takes longer than the garbage collection window ends with it.
	ErrTooOld = errors.New("version too old")
	// ErrReadOnly: the disk of the range's leader is nearly full. Such errors
	// are ErrUnavailable too.
	ErrReadOnly = errors.New("read-only")
	// ErrInternal: a defect of Flotilla. The outcome of a write is not known.
	ErrInternal = errors.New("internal error")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("client closed")
)

// Error is how every method fails. It names the verb and the key, what kind of
// failure it is, and what is known.
type Error struct {
	Verb   string // put, get, ...
	Key    []byte // nil if no single key is meant
	Kind   error  // one of the package's errors
	Detail string // in words; may be empty
	Cause  error  // the context's error, if that ended the call
}

// Error returns, for example, `put "user/7": outcome unknown: node n2: the
// connection broke`.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Verb)
	if e.Key != nil {
		b.WriteByte(' ')
		b.WriteString(quoteKey(e.Key))
	}
	b.WriteString(": ")
	b.WriteString(e.Kind.Error())
	if e.Detail != "" {
		b.WriteString(": ")
		b.WriteString(e.Detail)
	}
	return b.String()
}

// Unwrap lets errors.Is find the kind and the context's error.
func (e *Error) Unwrap() []error {
	errs := []error{e.Kind}
	if e.Kind == ErrReadOnly {
		errs = append(errs, ErrUnavailable)
	}
	if e.Kind == ErrInternal {
		errs = append(errs, ErrUnknownOutcome)
	}
	if e.Cause != nil {
		errs = append(errs, e.Cause)
	}
	return errs
}

// ConflictError says what stood in the way of a compare-and-swap or an atomic
// batch. It is an ErrConflict.
type ConflictError struct {
	Verb    string
	Key     []byte
	Found   bool    // the key exists
	Value   []byte  // its value
	Version Version // its version
	Detail  string
}

// Error returns, for example, `cas "user/7": conflict: the key is at version 17`.
func (e *ConflictError) Error() string {
	what := e.Detail
	switch {
	case what != "":
	case e.Found:
		what = fmt.Sprintf("the key is at version %d", e.Version)
	default:
		what = "the key does not exist"
	}
	return fmt.Sprintf("%s %s: conflict: %s", e.Verb, quoteKey(e.Key), what)
}

// Unwrap returns ErrConflict.
func (e *ConflictError) Unwrap() error { return ErrConflict }

// shownKeyBytes is how much of a key an error shows.
const shownKeyBytes = 80

func quoteKey(key []byte) string {
	if len(key) > shownKeyBytes {
		return strconv.Quote(string(key[:shownKeyBytes])) + "…"
	}
	return strconv.Quote(string(key))
}

// kindOf maps verdicts to kinds; what is not here is ErrInternal.
func kindOf(code kv.Code) error {
	switch code {
	case kv.CodeNotFound:
		return ErrNotFound
	case kv.CodeConflict:
		return ErrConflict
	case kv.CodeUnavailable, kv.CodeOverloaded, kv.CodeNotLeader, kv.CodeWrongRange:
		return ErrUnavailable
	case kv.CodeUnknownOutcome:
		return ErrUnknownOutcome
	case kv.CodeCrossRange:
		return ErrCrossRange
	case kv.CodeInvalid, kv.CodeUnknownVerb:
		return ErrInvalid
	case kv.CodeTooLarge:
		return ErrTooLarge
	case kv.CodeReadOnly:
		return ErrReadOnly
	case kv.CodeBelowThreshold:
		return ErrTooOld
	default:
		return ErrInternal
	}
}

// failure turns a verdict into an error; nil for CodeOK. cause is the error of
// the context, if it ended the call.
func failure(verb string, key []byte, r *kv.Response, cause error) error {
	switch r.Code {
	case kv.CodeOK:
		return nil
	case kv.CodeConflict:
		return &ConflictError{
			Verb: verb, Key: key, Found: r.Found, Value: r.Value,
			Version: Version(r.Timestamp), Detail: r.Message,
		}
	case kv.CodeNotFound:
		return &Error{Verb: verb, Key: key, Kind: ErrNotFound}
	}
	detail := r.Message
	if cause != nil {
		detail = strings.TrimSuffix(causeText(cause)+"; last heard: "+detail, "; last heard: ")
	}
	return &Error{Verb: verb, Key: key, Kind: kindOf(r.Code), Detail: detail, Cause: cause}
}

// reason says in few words why a call to an endpoint failed.
func reason(err error) string {
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Message()
	}
	if strings.Contains(text, "looked like an HTTP/1.1 header") {
		return "it speaks HTTP, not gRPC: is that the node's --http address?"
	}
	// What grpc wraps around: the last part says what happened.
	for _, mark := range []string{"connect: ", "dial tcp: "} {
		if i := strings.LastIndex(text, mark); i >= 0 {
			text = text[i+len(mark):]
		}
	}
	return strings.Trim(text, `"`)
}
