package loadtest

import (
	"bytes"
	"compress/flate"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 9)) }

// cumulative is the slow, obviously right twin of zipf: the sum of all weights
// up to each rank, as a share of the whole.
func cumulative(n int, s float64) []float64 {
	sums, total := make([]float64, n), 0.0
	for k := range sums {
		total += math.Pow(float64(k+1), -s)
		sums[k] = total
	}
	for k := range sums {
		sums[k] /= total
	}
	return sums
}

func TestZipfFollowsTheSumOfItsSeries(t *testing.T) {
	t.Parallel()
	const draws = 200_000
	for _, n := range []int{1, 2, 3, 10, 1000, 100_000} {
		for _, s := range []float64{0.5, zipfTheta, 1, 1.3} {
			want := cumulative(n, s)
			got := make([]float64, n)
			r, z := seeded(uint64(n)), newZipf(uint64(n), s)
			for range draws {
				got[z.rank(r)] += 1.0 / draws
			}
			// Kolmogorov and Smirnov: beyond 1.95/sqrt(draws) by chance once in 1,000.
			sum, distance := 0.0, 0.0
			for k := range got {
				sum += got[k]
				distance = max(distance, math.Abs(sum-want[k]))
			}
			if limit := 1.95 / math.Sqrt(draws); distance > limit {
				t.Errorf("n=%d s=%v: distance %v from the twin, limit %v", n, s, distance, limit)
			}
		}
	}
}

func TestZipfianScattersItsFavourites(t *testing.T) {
	t.Parallel()
	const n, draws = 10_000, 300_000
	r, c := seeded(1), newChooser(Zipfian, n, newInserts(n))
	counts := make([]int, n)
	for range draws {
		counts[c.next(r)]++
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return counts[b] - counts[a] })
	if share := float64(counts[order[0]]) / draws; share < 0.08 || share > 0.14 {
		t.Errorf("the favourite of %d gets %.3f of all", n, share) // 1/H(n) is 0.10
	}
	low, high := 0, 0
	for _, i := range order[:20] {
		if i < n/2 {
			low++
		} else {
			high++
		}
	}
	if low < 3 || high < 3 {
		t.Errorf("of the 20 favourites %d lie in the lower half, %d in the upper", low, high)
	}
}

func TestLatestFollowsTheInserts(t *testing.T) {
	t.Parallel()
	in := newInserts(1000)
	r, c := seeded(2), newChooser(Latest, 1000, in)
	newest := func() (share float64) {
		for range 20_000 {
			i := c.next(r)
			if i >= in.contiguous() {
				t.Fatalf("chose record %d of %d", i, in.contiguous())
			}
			if i == in.contiguous()-1 {
				share += 1.0 / 20_000
			}
		}
		return share
	}
	if s := newest(); s < 0.08 {
		t.Errorf("the newest gets %.3f", s)
	}
	for range 500 {
		in.finished(in.take())
	}
	if s := newest(); in.contiguous() != 1500 || s < 0.08 {
		t.Errorf("after 500 inserts the newest of %d gets %.3f", in.contiguous(), s)
	}
}

func TestUniformFavoursNobody(t *testing.T) {
	t.Parallel()
	r, c := seeded(3), newChooser(Uniform, 10, newInserts(10))
	var counts [10]int
	for range 100_000 {
		counts[c.next(r)]++
	}
	for i, n := range counts {
		if n < 9_500 || n > 10_500 {
			t.Errorf("record %d was chosen %d times of 100,000", i, n)
		}
	}
}

func TestInsertsKnowTheFirstThatIsMissing(t *testing.T) {
	t.Parallel()
	in := newInserts(5)
	a, b, c := in.take(), in.take(), in.take()
	in.finished(c)
	in.finished(b)
	if in.contiguous() != 5 {
		t.Errorf("contiguous %d while %d is out", in.contiguous(), a)
	}
	in.finished(a)
	if in.contiguous() != 8 || len(in.mu.ahead) != 0 {
		t.Errorf("contiguous %d, %d kept", in.contiguous(), len(in.mu.ahead))
	}
}

func TestKeysAreDistinctAndBucketsTileThem(t *testing.T) {
	t.Parallel()
	for _, ordered := range []bool{false, true} {
		k := keyspace{prefix: "user", ordered: ordered}
		const n = 8_000
		seen, g := map[string]bool{}, newGaps(0, k.buckets(n))
		counts := make([]int, bucketCount)
		for i := range uint64(n) {
			key := k.append(nil, i)
			if seen[string(key)] {
				t.Fatalf("key %q twice", key)
			}
			seen[string(key)] = true
			at, ok := g.locate(key)
			if !ok {
				t.Fatalf("key %q in no bucket", key)
			}
			counts[at]++
		}
		for i, c := range counts {
			if c < n/bucketCount*7/10 || c > n/bucketCount*13/10 {
				t.Errorf("ordered %v: bucket %d has %d of %d keys", ordered, i, c, n)
			}
		}
	}
	k := keyspace{prefix: "k", ordered: true}
	if a, b := k.append(nil, 99), k.append(nil, 100); bytes.Compare(a, b) >= 0 {
		t.Errorf("%q does not sort before %q", a, b)
	}
}

func TestValuesDoNotCompressUnlessAskedTo(t *testing.T) {
	t.Parallel()
	size := func(compressible float64) int {
		value, r := make([]byte, 4096+3), seeded(4)
		fillValue(r, value, compressible)
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, flate.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(value)
		_ = w.Close()
		return b.Len()
	}
	if n := size(0); n < 4090 {
		t.Errorf("a value of 4099 bytes compresses to %d", n)
	}
	if n := size(0.5); n < 2000 || n > 2150 {
		t.Errorf("half a value compresses to %d", n)
	}
}

func TestWorkloadsDrawTheirShares(t *testing.T) {
	t.Parallel()
	for _, w := range Workloads() {
		var counts [operationCount]int
		sum, r := 0, seeded(5)
		for range 100_000 {
			counts[w.draw(r)]++
		}
		for _, s := range w.Mix {
			sum += s.Percent
			if got := float64(counts[s.Operation]) / 1000; math.Abs(got-float64(s.Percent)) > 1 {
				t.Errorf("%s: %.1f %% are %v", w.Name, got, s.Operation)
			}
		}
		if sum != 100 {
			t.Errorf("%s: shares add up to %d", w.Name, sum)
		}
	}
	if _, err := FindWorkload("ycsb-z"); err == nil {
		t.Error("ycsb-z exists")
	}
}
