package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

var (
	turmoils  = flag.Int("turmoils", 6, "how many random stories are told")
	firstSeed = flag.Uint64("turmoil", 1, "the seed of the first one")
)

// tale makes up a script: a cluster to which all sorts of things happen, and which is
// then left in peace and has to come to rest.
func tale(seed uint64) string {
	rng := rand.New(rand.NewPCG(seed, 7))
	pick := func(from ...string) string { return from[rng.IntN(len(from))] }
	count := 5 + rng.IntN(5)
	var s strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&s, format+"\n", args...) }
	say("world nodes=%d zones=%s tenants=a,b ranges=%d bytes=%s skew=%s factor=%s dead-after=1m "+
		"merge-below=4M merge-after=2m seed=%d", count, pick("a,b,c", "a", "a,b,c,d,e"),
		40+rng.IntN(80), pick("1M", "8M", "24M"), pick("0", "1"), pick("3", "3", "5"), seed)
	say("load base reads=3000 writes=1500 cpu=60 noise=40%% inserts=%s", pick("0", "20%"))
	for range 30 {
		n := 1 + rng.IntN(count)
		switch rng.IntN(14) {
		case 0, 1:
			say("kill n%d", n)
		case 2, 3:
			say("start n%d", n)
		case 4:
			say("flap n%d down=%s up=%s for=2m", n, pick("2s", "5s", "20s"), pick("3s", "9s", "30s"))
		case 5:
			say("stand draining n%d", n)
		case 6:
			say("stand active n%d", n)
		case 7:
			say("load hot tenant=%s from=0.%d to=0.%d9 reads=%d000 cpu=60", pick("a", "b"),
				rng.IntN(5), 5+rng.IntN(5), 5+rng.IntN(50))
		case 8:
			say("load hot off")
		case 9:
			say("operate relocate range=%d nodes=%d,%d,%d", 4+rng.IntN(60), n, n%count+1, (n+1)%count+1)
		case 10:
			say("operate merge range=%d", 4+rng.IntN(60))
		case 11:
			say("rules\n  name=default replicas=%s\n  name=b prefix=b/ replicas=3 %s", pick("3", "5"),
				pick("spread=zone", "leaders=zone=a", "forbid=zone=e", ""))
		case 12:
			say("operate scatter tenant=%s", pick("a", "b"))
		case 13:
			say("placement off\nrun %ds\nplacement on", 1+rng.IntN(90))
		}
		say("run %ds", 1+rng.IntN(40))
	}
	say("load hot off\nload base off\nrun 3m") // flapping ends
	for n := 1; n <= count; n++ {
		say("start n%d\nrun 1s", n)
	}
	say("run 20s")
	for n := 1; n <= count; n++ {
		say("stand active n%d", n)
	}
	say("rules\n  name=default replicas=3\nconverge within=60m\nrun 30m\nconverge within=30m\nquiet 15m")
	return s.String()
}

// The same where no zone is ever to be given a majority: then copies are missing
// meanwhile.
func TestTurmoilUnderIsolation(t *testing.T) {
	t.Parallel()
	isolate := strings.NewReplacer("name=default replicas=3", "name=default replicas=3 isolation=zone",
		"name=default replicas=5", "name=default replicas=5 isolation=zone",
		"spread=zone", "isolation=zone")
	for seed := *firstSeed; seed < *firstSeed+uint64(*turmoils+1)/2; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			if trace, _, err := Play(isolate.Replace(tale(seed))); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, trace)
			}
		})
	}
}

// Whatever happens: no range loses its majority or its last spare copy by what
// placement does, no zone gets a majority, and when peace is back so is order.
func TestTurmoil(t *testing.T) {
	t.Parallel()
	for seed := *firstSeed; seed < *firstSeed+uint64(*turmoils); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			if trace, _, err := Play(tale(seed)); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, trace)
			}
		})
	}
}
