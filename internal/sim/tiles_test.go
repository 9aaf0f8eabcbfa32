package sim

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/proto/kv"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// span makes a descriptor of the users' keys from start to end, "" for the ends.
func span(id, gen uint64, start, end string, mark *metapb.MergeMark) *metapb.RangeDescriptor {
	d := &metapb.RangeDescriptor{
		RangeId: id, Generation: gen, Start: userKey("%s", start), End: userEnd(), Merge: mark,
	}
	if end != "" {
		d.End = userKey("%s", end)
	}
	return d
}

func frozenFor(id, gen uint64) *metapb.MergeMark {
	return &metapb.MergeMark{
		Phase: metapb.MergePhase_MERGE_PHASE_FROZEN, RangeId: id, Generation: gen,
	}
}

func TestTilesFindWhatDoesNotTileAndWhoServesWhatIsGone(t *testing.T) {
	whole, left, right := span(2, 1, "", "", nil), span(2, 2, "", "m", nil), span(3, 2, "m", "", nil)
	frozen, again := span(3, 3, "m", "", frozenFor(2, 3)), span(2, 4, "", "", nil)
	type looks = [][]*metapb.RangeDescriptor
	for name, c := range map[string]struct {
		seen  looks // by one pass each
		then  func(c *tiles, n *node)
		legal bool
	}{
		"a split and a merge":              {looks{{whole}, {left, right}, {frozen}, {again}}, nil, true},
		"one that was overtaken":           {looks{{left, right}, {whole}}, nil, true},
		"half of a split":                  {looks{{whole}, {left}}, nil, false},
		"the other half of a split":        {looks{{whole}, {right}}, nil, false},
		"two ranges of one generation":     {looks{{left, right}, {span(4, 2, "m", "", nil)}}, nil, false},
		"one generation, two descriptors":  {looks{{left, right}, {span(2, 2, "", "n", nil)}}, nil, false},
		"newer than a part only":           {looks{{left, right}, {frozen}, {span(9, 3, "", "", nil)}}, nil, false},
		"absorbed without being frozen":    {looks{{left, right}, {again}}, nil, false},
		"absorbed, frozen for another one": {looks{{left, right}, {span(3, 3, "m", "", frozenFor(9, 3))}, {again}}, nil, false},
		"absorbed, and thawed": {looks{{left, right}, {frozen}, {span(2, 9, "", "", nil)},
			{span(3, 4, "m", "", nil)}}, nil, false},
		"read from before the freeze": {looks{{left, right}, {frozen}}, func(c *tiles, n *node) {
			c.served(n, 3, c.frozen[3].stamp)
		}, true},
		"read of a frozen range": {looks{{left, right}, {frozen}}, func(c *tiles, n *node) {
			c.served(n, 3, c.frozen[3].stamp+1)
		}, false},
		"read of an absorbed range": {looks{{left, right}, {frozen}, {again}}, func(c *tiles, n *node) {
			c.served(n, 3, hlc.MaxTimestamp)
		}, false},
		"write to a frozen range": {looks{{left, right}, {frozen}}, func(c *tiles, n *node) {
			c.frozen[3].term = 7
			c.wrote(n, 3, 7)
		}, false},
		"write of a leader that does not know": {looks{{left, right}, {frozen}}, func(c *tiles, n *node) {
			c.frozen[3].term = 7
			c.wrote(n, 3, 6)
		}, true},
		"write after the thaw": {looks{{left, right}, {frozen}, {span(3, 4, "m", "", nil)}},
			func(c *tiles, n *node) { c.wrote(n, 3, 9) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(calm(1))
			n := s.machines[0]
			if err := n.boot(); err != nil {
				t.Fatal(err)
			}
			defer s.closeStores()
			tiles := s.checker.tiles
			system := &metapb.RangeDescriptor{
				RangeId: 1, Generation: 1, Start: []byte{kv.SystemPrefix}, End: []byte{kv.UserPrefix},
			}
			for _, pass := range c.seen {
				tiles.see(n, system)
				for _, d := range pass {
					tiles.see(n, d)
				}
				tiles.whole(n)
			}
			if c.then != nil && s.err == nil {
				c.then(tiles, n)
			}
			if (s.err == nil) != c.legal {
				t.Errorf("%v", s.err)
			}
		})
	}
}
