package rowcache

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
)

const (
	testRange = 7
	now       = hlc.MaxTimestamp
)

func newCache(t testing.TB, size int64) *Cache {
	t.Helper()
	c, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (c *Cache) put(k string, word uint64, version hlc.Timestamp, value string) {
	c.Put(Hash(testRange, []byte(k)), testRange, []byte(k), Stamp{Word: word},
		Row{Version: version, Value: []byte(value)})
	c.rows.Wait()
}

func (c *Cache) get(k string, word uint64, ts hlc.Timestamp) string {
	r, ok := c.Get(Hash(testRange, []byte(k)), testRange, []byte(k), Stamp{Word: word}, ts)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s@%d", r.Value, r.Version)
}

func TestRowIsServedUnderItsStampOnly(t *testing.T) {
	t.Parallel()
	c := newCache(t, MinBytes)
	c.put("k", 8, 100, "v")
	for _, x := range []struct {
		word uint64
		ts   hlc.Timestamp
		want string
	}{{8, now, "v@100"}, {8, 100, "v@100"}, {8, 99, ""}, {7, now, ""}, {9, now, ""}} {
		if got := c.get("k", x.word, x.ts); got != x.want {
			t.Errorf("under %d at %d got %q, want %q", x.word, x.ts, got, x.want)
		}
	}
	if s := c.Stats(); s.Hits != 2 || s.Misses != 3 || s.Stale != 2 || s.Ahead != 1 ||
		s.Bytes < rowOverhead {
		t.Errorf("counted %+v", s)
	}
}

func TestKeysThatShareAHashAreNotMistaken(t *testing.T) {
	t.Parallel()
	c := newCache(t, MinBytes)
	c.Put(1, testRange, []byte("a"), Stamp{Word: 8}, Row{Version: 1, Value: []byte("of a")})
	c.rows.Wait()
	if _, ok := c.Get(1, testRange, []byte("b"), Stamp{Word: 8}, now); ok {
		t.Error("a's row was taken for b's")
	}
	if _, ok := c.Get(1, testRange+1, []byte("a"), Stamp{Word: 8}, now); ok {
		t.Error("the row was taken for another range's")
	}
	if r, ok := c.Get(1, testRange, []byte("a"), Stamp{Word: 8}, now); !ok ||
		string(r.Value) != "of a" {
		t.Errorf("got %q, %v", r.Value, ok)
	}
}

// The library may keep the older of two rows that are put in at once. It only
// misses then, and the next fill repairs it.
func TestOlderRowThatStaysIsAMissUntilTheNextFill(t *testing.T) {
	t.Parallel()
	c := newCache(t, MinBytes)
	h := Hash(testRange, []byte("k"))
	c.Put(h, testRange, []byte("k"), Stamp{Word: 8}, Row{Version: 1, Value: []byte("old")})
	c.Put(h, testRange, []byte("k"), Stamp{Word: 16}, Row{Version: 2, Value: []byte("new")})
	c.rows.Wait()
	if got := c.get("k", 16, now); got != "" && got != "new@2" {
		t.Fatalf("got %q", got)
	}
	c.put("k", 16, 2, "new")
	if got := c.get("k", 16, now); got != "new@2" {
		t.Fatalf("after the next fill got %q", got)
	}
}

func TestNoCacheIsACacheThatMisses(t *testing.T) {
	t.Parallel()
	var c *Cache
	c.Put(1, testRange, []byte("k"), Stamp{}, Row{})
	if _, ok := c.Get(1, testRange, []byte("k"), Stamp{}, now); ok || c.Stats() != (Stats{}) {
		t.Fatal("it has something")
	}
	c.Close()
}

func TestRowsComeWhileTheCacheCloses(t *testing.T) {
	t.Parallel()
	c := newCache(t, MinBytes)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				k := fmt.Append(nil, g, i)
				c.Put(Hash(testRange, k), testRange, k, Stamp{}, Row{Value: k})
				c.Get(Hash(testRange, k), testRange, k, Stamp{}, now)
			}
		})
	}
	c.Close()
	c.Close()
	wg.Wait()
}

// What a full cache holds of the heap stays near its bound.
func TestBoundIsOfAllMemory(t *testing.T) {
	const size = 16 << 20
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, valueBytes := range []int{20, 100, 1000} {
		before := heap()
		c := newCache(t, size)
		for i := range 3 * size / (valueBytes + rowOverhead) {
			k := fmt.Appendf(nil, "user%012d", i)
			c.Put(Hash(testRange, k), testRange, k, Stamp{}, Row{Value: make([]byte, valueBytes)})
			if i%1000 == 0 {
				c.rows.Wait()
			}
		}
		c.rows.Wait()
		used := heap() - before
		t.Logf("values of %d bytes: %d KiB of heap, %d counted", valueBytes, used>>10,
			c.Stats().Bytes>>10)
		if used > size*5/4 {
			t.Errorf("values of %d bytes: %d bytes of heap, the bound is %d", valueBytes, used, size)
		}
		c.Close()
		runtime.KeepAlive(c)
	}
}

func BenchmarkHit(b *testing.B) {
	c := newCache(b, 16<<20)
	keys := make([][]byte, 1024)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "user%012d", i)
		c.Put(Hash(testRange, keys[i]), testRange, keys[i], Stamp{}, Row{Value: make([]byte, 100)})
	}
	c.rows.Wait()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		k := keys[i%len(keys)]
		c.Get(Hash(testRange, k), testRange, k, Stamp{}, now)
	}
}
