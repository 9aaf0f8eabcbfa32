package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"text/tabwriter"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/flotilla-kv/flotilla/client"
)

// isJSON says whether output is for programs.
func (a *app) isJSON() bool { return a.output == "json" }

// json writes one object, on a line of its own.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes aligned columns.
func (a *app) table(header string, rows func(add func(format string, args ...any))) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, header)
	rows(func(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) })
	return w.Flush()
}

// talk writes a line for people.
func (a *app) talk(format string, args ...any) {
	fmt.Fprintf(a.stderr, format+"\n", args...)
}

// record is a key with its value as JSON has it: text where it is valid UTF-8,
// else base64 in the fields that end in _b64.
type record struct {
	Key      *string        `json:"key,omitempty"`
	KeyB64   *string        `json:"key_b64,omitempty"`
	Value    *string        `json:"value,omitempty"`
	ValueB64 *string        `json:"value_b64,omitempty"`
	Version  client.Version `json:"version,omitempty"`
}

// newRecord makes a record; a nil value is left out.
func newRecord(key, value []byte, version client.Version) record {
	r := record{Version: version}
	r.Key, r.KeyB64 = textOrBase64(key)
	if value != nil {
		r.Value, r.ValueB64 = textOrBase64(value)
	}
	return r
}

func textOrBase64(b []byte) (text, b64 *string) {
	if utf8.Valid(b) {
		return new(string(b)), nil
	}
	return nil, new(base64.StdEncoding.EncodeToString(b))
}

// quoteKey shows an internal key as users know it: without its prefix, quoted.
// The bounds of the whole user space are ∅ and ∞.
func quoteKey(internal []byte) string {
	const userPrefix, endPrefix = 0x20, 0x21
	switch {
	case len(internal) == 0:
		return `""`
	case internal[0] == userPrefix:
		return strconv.Quote(string(internal[1:]))
	case len(internal) == 1 && internal[0] == endPrefix:
		return "∞"
	default:
		return fmt.Sprintf("0x%x", internal)
	}
}

// bytesText is a size for people.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, suffix := float64(n)/unit, "KiB"
	for _, s := range []string{"MiB", "GiB", "TiB", "PiB"} {
		if f < unit {
			break
		}
		f, suffix = f/unit, s
	}
	return fmt.Sprintf("%.1f %s", f, suffix)
}

// plural is "1 range", "2 ranges".
func plural[N int | int64 | uint32 | uint64](n N, noun string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// adminError makes a client's error of a node's.
func adminError(err error) error {
	s, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	kind := fmt.Errorf("%s", s.Message())
	switch s.Code() {
	case codes.NotFound:
		return &client.Error{Verb: "ask the cluster", Kind: client.ErrNotFound, Detail: s.Message()}
	case codes.Unavailable, codes.DeadlineExceeded:
		return &client.Error{
			Verb: "ask the cluster", Kind: client.ErrUnavailable, Detail: s.Message(),
		}
	case codes.InvalidArgument:
		return usageError{s.Message()}
	case codes.Unimplemented:
		return errors.New("the node that answered does not know this command: " +
			"it runs an older version")
	}
	return kind
}
