package loadtest

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/client"
)

// Flotilla is a cluster of this project.
type Flotilla struct {
	clients []*client.Client // immutable
	next    atomic.Uint64
	// ranges lists the cluster's ranges, see OpenFlotilla.
	ranges func(ctx context.Context, c *client.Client) ([]Range, error)
}

// OpenFlotilla connects count clients, each with a stream of its own per node
// (one is enough but for very high rates). ranges lists the ranges of the
// cluster; nil if that is not wanted.
func OpenFlotilla(
	ctx context.Context, endpoints []string, count int,
	ranges func(ctx context.Context, c *client.Client) ([]Range, error),
) (*Flotilla, error) {
	f := &Flotilla{ranges: ranges}
	for range max(count, 1) {
		c, err := client.Open(ctx, endpoints)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.clients = append(f.clients, c)
	}
	return f, nil
}

func (f *Flotilla) client() *client.Client {
	if len(f.clients) == 1 {
		return f.clients[0]
	}
	return f.clients[f.next.Add(1)%uint64(len(f.clients))]
}

// Get reads a key.
func (f *Flotilla) Get(ctx context.Context, key []byte) (bool, error) {
	_, err := f.client().Get(ctx, key)
	if errors.Is(err, client.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Put writes a key.
func (f *Flotilla) Put(ctx context.Context, key, value []byte) error {
	_, err := f.client().Put(ctx, key, value)
	return err
}

// ReadModifyWrite reads a key, then writes it.
func (f *Flotilla) ReadModifyWrite(ctx context.Context, key, value []byte) (bool, error) {
	found, err := f.Get(ctx, key)
	if err != nil {
		return false, err
	}
	return found, f.Put(ctx, key, value)
}

// Scan reads up to limit rows.
func (f *Flotilla) Scan(ctx context.Context, start []byte, limit int) (rows int, err error) {
	for _, err := range f.client().Scan(ctx, start, nil, client.WithLimit(limit)) {
		if err != nil {
			return rows, err
		}
		rows++
	}
	return rows, nil
}

// Ranges lists the cluster's ranges.
func (f *Flotilla) Ranges(ctx context.Context) ([]Range, error) {
	if f.ranges == nil {
		return nil, errors.New("list ranges: not asked for")
	}
	return f.ranges(ctx, f.clients[0])
}

// ErrorKind names the kinds of errors of the client.
func (f *Flotilla) ErrorKind(err error) string {
	switch {
	case errors.Is(err, client.ErrInternal): // an ErrUnknownOutcome too
		return "internal"
	case errors.Is(err, client.ErrUnknownOutcome):
		return "unknown-outcome"
	case errors.Is(err, client.ErrReadOnly): // an ErrUnavailable too
		return "read-only"
	case errors.Is(err, client.ErrUnavailable) && errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, client.ErrUnavailable):
		return "unavailable"
	case errors.Is(err, client.ErrConflict):
		return "conflict"
	case errors.Is(err, client.ErrTooLarge):
		return "too-large"
	case errors.Is(err, client.ErrInvalid):
		return "invalid"
	case errors.Is(err, client.ErrTooOld):
		return "too-old"
	default:
		return "other"
	}
}

// Close closes the clients.
func (f *Flotilla) Close() error {
	var errs []error
	for _, c := range f.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

var (
	_ Store       = (*Flotilla)(nil)
	_ RangeLister = (*Flotilla)(nil)
)
