package loadtest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/client"
)

func TestErrorsOfTheClientHaveOneKindEach(t *testing.T) {
	t.Parallel()
	failed := func(kind, cause error) error {
		return fmt.Errorf("wrapped: %w", &client.Error{Verb: "put", Kind: kind, Cause: cause})
	}
	cases := map[string]error{
		"internal":        failed(client.ErrInternal, nil),
		"unknown-outcome": failed(client.ErrUnknownOutcome, context.DeadlineExceeded),
		"read-only":       failed(client.ErrReadOnly, nil),
		"timeout":         failed(client.ErrUnavailable, context.DeadlineExceeded),
		"unavailable":     failed(client.ErrUnavailable, nil),
		"conflict":        &client.ConflictError{},
		"too-large":       failed(client.ErrTooLarge, nil),
		"invalid":         failed(client.ErrInvalid, nil),
		"too-old":         failed(client.ErrTooOld, nil),
		"other":           errors.New("anything"),
	}
	for want, err := range cases {
		if got := (&Flotilla{}).ErrorKind(err); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}
