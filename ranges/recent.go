package ranges

import (
	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/store/mvcc"
)

// recent is what a leader remembers of its own writes: the newest version of
// each key and the identity of each write. Shard only, empty unless ready.
//
// Invariant: every write that this replica evaluated in its present term is
// remembered, or it is applied at or below floorIndex and its timestamp is at
// or below memFloor. Writes of earlier terms lie at or below both from the
// start of the term.
//
// So a look at the disk that began when at least floorIndex was applied, and
// memory, together know the newest version of every key; and an identity whose
// floor is at or above memFloor needs memory only.
//
// Two generations bound it: when the younger is full the older one is
// forgotten, but for what is in flight, and the floors rise.
type recent struct {
	young, old generation
	memFloor   hlc.Timestamp
	floorIndex ids.Index
	familiar   familiar // any goroutine may ask it
}

type generation struct {
	keys   map[string]*keyRecord
	idents map[identity]*identRecord
	newest hlc.Timestamp // highest timestamp in it
	index  ids.Index     // highest index at which something of it was applied
}

func (g *generation) make() {
	if g.keys == nil {
		g.keys = make(map[string]*keyRecord)
		g.idents = make(map[identity]*identRecord)
	}
}

// identity is a write identity without its floor.
type identity struct {
	client, sequence uint64
	operation        uint32
}

func identityOf(id kv.Identity) identity {
	return identity{id.Client, id.Sequence, id.Operation}
}

type keyRecord struct {
	newest   mvcc.Newest // after the last evaluated write
	inFlight int
}

// identRecord is the result of a write, or who will have it.
type identRecord struct {
	at     hlc.Timestamp
	found  bool
	flight *write // nil: applied
}

// start begins a term of leadership.
func (m *recent) start(lowWater hlc.Timestamp, applied ids.Index) {
	m.clear()
	m.memFloor, m.floorIndex = lowWater, applied
}

// clear ends it.
func (m *recent) clear() {
	m.young, m.old, m.memFloor, m.floorIndex = generation{}, generation{}, 0, 0
	m.familiar.clear()
}

// trusts says whether a look at the disk that began at the given applied index
// still tells the newest version of a key that memory does not have.
func (m *recent) trusts(applied ids.Index) bool { return applied >= m.floorIndex }

func (m *recent) key(k string) *keyRecord {
	if r := m.young.keys[k]; r != nil {
		return r
	}
	return m.old.keys[k]
}

func (m *recent) ident(id identity) *identRecord {
	if r := m.young.idents[id]; r != nil {
		return r
	}
	return m.old.idents[id]
}

// undo is how to take back what note did.
type undo struct {
	key   string
	had   bool
	prior mvcc.Newest
	ident identity // client 0: none
}

// note remembers an evaluated write of key k.
func (m *recent) note(k string, newest mvcc.Newest, id identity, rec *identRecord) undo {
	m.rotateIfFull()
	u := undo{key: k}
	r := m.key(k)
	if r == nil {
		r = &keyRecord{}
	} else {
		u.had, u.prior = true, r.newest
		delete(m.old.keys, k)
	}
	m.young.make()
	m.young.keys[k] = r
	m.familiar.add(k, m.memFloor)
	r.newest = newest
	r.inFlight++
	m.young.newest = max(m.young.newest, newest.Timestamp)
	if id.client != 0 && rec != nil {
		u.ident = id
		delete(m.old.idents, id)
		m.young.idents[id] = rec
	}
	return u
}

// takeBack undoes a note. Notes are taken back in reverse order.
func (m *recent) takeBack(u undo) {
	if u.ident.client != 0 {
		delete(m.young.idents, u.ident)
		delete(m.old.idents, u.ident)
	}
	r := m.key(u.key)
	if r == nil {
		return
	}
	r.inFlight--
	r.newest = u.prior
	if !u.had {
		delete(m.young.keys, u.key)
		delete(m.old.keys, u.key)
	}
}

// applied marks a noted write as applied at index.
func (m *recent) applied(u undo, index ids.Index) {
	for _, g := range [...]*generation{&m.young, &m.old} {
		if r := g.keys[u.key]; r != nil {
			r.inFlight--
			g.index = index
		}
		if r := g.idents[u.ident]; r != nil && u.ident.client != 0 {
			r.flight = nil
			g.index = index
		}
	}
}

// disown removes the identities of a write that turned out not to be applied.
func (m *recent) disown(notes []undo) {
	for _, u := range notes {
		if u.ident.client != 0 {
			delete(m.young.idents, u.ident)
			delete(m.old.idents, u.ident)
		}
	}
}

func (m *recent) rotateIfFull() {
	if len(m.young.keys) >= recentEntries || len(m.young.idents) >= recentEntries {
		m.rotate()
	}
}

// rotate forgets the older generation and makes the younger one the older.
func (m *recent) rotate() {
	gone := m.old
	m.old, m.young = m.young, generation{}
	m.memFloor = max(m.memFloor, gone.newest)
	m.floorIndex = max(m.floorIndex, gone.index)
	for k, r := range gone.keys {
		if r.inFlight > 0 {
			m.young.make()
			m.young.keys[k] = r
			m.young.newest = max(m.young.newest, r.newest.Timestamp)
		}
	}
	for id, r := range gone.idents {
		if r.flight != nil {
			m.young.make()
			m.young.idents[id] = r
			m.young.newest = max(m.young.newest, r.at)
		}
	}
	m.familiar.rotate(m.memFloor, m.young.keys)
}

// forget drops all but what is in flight: after garbage collection, which
// removes versions that memory believes to be there, and from idle ranges.
func (m *recent) forget(now hlc.Timestamp, applied ids.Index) {
	m.rotate()
	m.rotate()
	m.memFloor = max(m.memFloor, now)
	m.floorIndex = max(m.floorIndex, applied)
	m.familiar.clear()
}

func (m *recent) empty() bool { return len(m.young.keys) == 0 && len(m.old.keys) == 0 }
