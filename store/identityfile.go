package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The identity record is text, so that a person with a pager can read it. It
// has a fixed size and is overwritten in place: one fsync, no change of the
// directory. The checksum is over all that stands before it.
const (
	identityBytes  = 512
	identityFormat = "flotilla identity 1\nstore %016x\ncluster %016x\nnode %d\nlife %d\n" +
		"mark %016x\nbound %d\ncounter %d\n"
	identitySum = "sum %016x\n"
)

var errIdentityDamaged = errors.New("record is damaged or half written")

// identityFile names the file for a counter: the two are written in turn.
func identityFile(counter uint64) string {
	if counter%2 == 0 {
		return "IDENTITY-A"
	}
	return "IDENTITY-B"
}

func encodeIdentity(r IdentityRecord) []byte {
	b := make([]byte, 0, identityBytes)
	b = fmt.Appendf(b, identityFormat, r.StoreID, r.ClusterID, r.Node, r.Life, r.Mark, r.Bound,
		r.Counter)
	b = fmt.Appendf(b, identitySum, xxhash.Sum64(b))
	return append(b, bytes.Repeat([]byte{'\n'}, identityBytes-len(b))...)
}

func decodeIdentity(b []byte) (r IdentityRecord, err error) {
	_, err = fmt.Sscanf(string(b), identityFormat, &r.StoreID, &r.ClusterID, &r.Node, &r.Life,
		&r.Mark, &r.Bound, &r.Counter)
	// Encoding again checks the checksum and every byte between the numbers.
	if err != nil || !bytes.Equal(encodeIdentity(r), b) {
		return IdentityRecord{}, errIdentityDamaged
	}
	return r, nil
}

// writeIdentityFile writes and syncs the file whose turn it is.
func (s *Store) writeIdentityFile(counter uint64, encoded []byte) error {
	path := s.path(identityFile(counter))
	// Opening would make a missing file too, but not its name durable.
	_, err := s.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := writeFile(s.fs, path, encoded); err != nil {
			return err
		}
		return syncDir(s.fs, s.o.Dir)
	}
	if err != nil {
		return err
	}
	f, err := s.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(encoded, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readIdentityFiles returns the newer of the two records beside Pebble.
func (s *Store) readIdentityFiles() (newest IdentityRecord, err error) {
	var problems []error
	valid := false
	for i := range uint64(2) {
		r, err := s.readIdentityFile(s.path(identityFile(i)))
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if !valid || r.Counter > newest.Counter {
			newest, valid = r, true
		}
	}
	if !valid {
		return newest, openError(s.o.Dir, ErrUnreadable, errors.Join(problems...).Error(),
			remedyRebuild)
	}
	return newest, nil
}

func (s *Store) readIdentityFile(path string) (IdentityRecord, error) {
	f, err := s.fs.Open(path)
	if err != nil {
		return IdentityRecord{}, err
	}
	b := make([]byte, identityBytes+1) // one more, to notice a longer file
	n, err := io.ReadFull(f, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return IdentityRecord{}, fmt.Errorf("%s: %w", path, err)
	}
	r, err := decodeIdentity(b[:n])
	if err != nil {
		return IdentityRecord{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}
