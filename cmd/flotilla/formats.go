package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/flotilla-kv/flotilla/client"
)

// The formats of import and export. Both are one line per key, and both give
// back every byte: what export writes, import reads to the same keys and
// values, and export then writes the same file again.
//
// tsv: key, tab, value. Tab, newline and backslash in them are \t, \n and \\;
// every other byte stands for itself.
//
// jsonl: {"key":…,"value":…} with text, or key_b64 and value_b64 with base64
// where it is not valid UTF-8. A field "version" is ignored.

// rowWriter writes one row.
type rowWriter func(w *bufio.Writer, row client.KeyValue) error

// rowParser parses one line, without its newline. The results may alias it.
type rowParser func(line []byte) (key, value []byte, err error)

// formatOf returns the two sides of a format.
func formatOf(name string) (rowWriter, rowParser, error) {
	switch name {
	case "tsv":
		return writeTSV, parseTSV, nil
	case "jsonl":
		return writeJSON, parseJSON, nil
	default:
		return nil, nil, usageError{fmt.Sprintf("--format %q: it is tsv or jsonl", name)}
	}
}

func writeTSV(w *bufio.Writer, row client.KeyValue) error {
	writeEscaped(w, row.Key)
	_ = w.WriteByte('\t') // the writer keeps its first error
	writeEscaped(w, row.Value)
	return w.WriteByte('\n')
}

func writeKey(w *bufio.Writer, row client.KeyValue) error {
	writeEscaped(w, row.Key)
	return w.WriteByte('\n')
}

func writeEscaped(w *bufio.Writer, b []byte) {
	for {
		i := bytes.IndexAny(b, "\t\n\\")
		if i < 0 {
			_, _ = w.Write(b) // the writer keeps its first error
			return
		}
		_, _ = w.Write(b[:i])
		_ = w.WriteByte('\\')
		switch b[i] {
		case '\t':
			_ = w.WriteByte('t')
		case '\n':
			_ = w.WriteByte('n')
		default:
			_ = w.WriteByte('\\')
		}
		b = b[i+1:]
	}
}

var (
	errNoTab    = errors.New("no tab between key and value")
	errTabs     = errors.New(`a second tab; a tab in a key or value is written \t`)
	errEmptyKey = errors.New("the key is empty")
)

func parseTSV(line []byte) (key, value []byte, err error) {
	k, v, ok := bytes.Cut(line, []byte{'\t'})
	if !ok {
		return nil, nil, errNoTab
	}
	if bytes.IndexByte(v, '\t') >= 0 {
		return nil, nil, errTabs
	}
	if key, err = unescape(k); err != nil {
		return nil, nil, err
	}
	if value, err = unescape(v); err != nil {
		return nil, nil, err
	}
	return key, value, nil
}

func unescape(b []byte) ([]byte, error) {
	if bytes.IndexByte(b, '\\') < 0 {
		return b, nil
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		i++
		switch {
		case i == len(b):
			return nil, errors.New(`a lone backslash; a backslash is written \\`)
		case b[i] == 't':
			out = append(out, '\t')
		case b[i] == 'n':
			out = append(out, '\n')
		case b[i] == '\\':
			out = append(out, '\\')
		default:
			return nil, fmt.Errorf(`unknown escape \%c; there are \t, \n and \\`, b[i])
		}
	}
	return out, nil
}

func writeJSON(w *bufio.Writer, row client.KeyValue) error {
	row.Version = 0
	return writeVersioned(w, row)
}

func writeVersioned(w *bufio.Writer, row client.KeyValue) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(newRecord(row.Key, row.Value, row.Version))
}

func parseJSON(line []byte) (key, value []byte, err error) {
	if !utf8.Valid(line) {
		return nil, nil, errors.New("not valid UTF-8; use key_b64 and value_b64 for bytes")
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	var r record
	if err := d.Decode(&r); err != nil {
		return nil, nil, fmt.Errorf("not a JSON object with key and value: %s", jsonFault(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, nil, errors.New("more than one JSON object")
	}
	if key, err = bytesOf("key", r.Key, r.KeyB64, line); err != nil {
		return nil, nil, err
	}
	if value, err = bytesOf("value", r.Value, r.ValueB64, line); err != nil {
		return nil, nil, err
	}
	return key, value, nil
}

// jsonFault says what a line of JSON lacks, without Go's names.
func jsonFault(err error) string {
	if errors.Is(err, io.EOF) {
		return "the line is empty"
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if t.Field == "" {
			return "it is of type " + t.Value
		}
		return fmt.Sprintf("%s is of type %s", t.Field, t.Value)
	}
	return strings.TrimPrefix(err.Error(), "json: ")
}

// bytesOf takes the one of two fields that is there.
func bytesOf(name string, text, b64 *string, line []byte) ([]byte, error) {
	switch {
	case text == nil && b64 == nil:
		return nil, fmt.Errorf("no %s and no %s_b64", name, name)
	case text != nil && b64 != nil:
		return nil, fmt.Errorf("both %s and %s_b64", name, name)
	case b64 != nil:
		b, err := base64.StdEncoding.DecodeString(*b64)
		if err != nil {
			return nil, fmt.Errorf("%s_b64: %w", name, err)
		}
		return b, nil
	}
	// The decoder turns half a surrogate pair into the replacement character:
	// other bytes than were meant.
	meant := bytes.Contains(line, []byte("\uFFFD")) ||
		bytes.Contains(bytes.ToLower(line), []byte(`\ufffd`))
	if strings.ContainsRune(*text, utf8.RuneError) && !meant {
		return nil, fmt.Errorf("%s: a broken \\u escape", name)
	}
	return []byte(*text), nil
}
