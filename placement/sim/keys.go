package sim

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// position is a place in the users' keys: tenant times offsets plus an offset.
// Bytes and load are even over the positions of a range.
type position uint64

// offsets is how many positions a tenant has.
const offsets = 1 << 24

// keyspace maps positions to internal keys, in order.
type keyspace struct{ tenants []string }

func newKeyspace(tenants []string) keyspace {
	if len(tenants) == 0 {
		tenants = []string{"all"}
	}
	return keyspace{slices.SortedFunc(slices.Values(tenants), func(a, b string) int {
		return strings.Compare(a+"/", b+"/") // as their keys are
	})}
}

// end is the position after the last one.
func (k keyspace) end() position { return position(len(k.tenants)) * offsets }

// key returns the first internal key of a position.
func (k keyspace) key(p position) []byte {
	switch tenant, offset := p/offsets, p%offsets; {
	case p == 0:
		return []byte{kv.UserPrefix}
	case p >= k.end():
		return []byte{kv.EndPrefix}
	case offset == 0:
		return kv.UserKey(nil, []byte(k.tenants[tenant]+"/"))
	default:
		return kv.UserKey(nil, fmt.Appendf(nil, "%s/%06x", k.tenants[tenant], uint64(offset)))
	}
}

// position returns the first position whose key is not below an internal key.
func (k keyspace) position(key []byte) position {
	return position(sort.Search(int(k.end()), func(p int) bool {
		return bytes.Compare(k.key(position(p)), key) >= 0
	}))
}

// tenant returns the span of one tenant.
func (k keyspace) tenant(name string) (from, to position, err error) {
	i := slices.Index(k.tenants, name)
	if i < 0 {
		return 0, 0, fmt.Errorf("no tenant %q: there are %v", name, k.tenants)
	}
	return position(i) * offsets, position(i+1) * offsets, nil
}
