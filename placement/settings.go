package placement

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-kv/flotilla/internal/hlc"
	"github.com/flotilla-kv/flotilla/internal/ids"
	"github.com/flotilla-kv/flotilla/placement/rules"
	"github.com/flotilla-kv/flotilla/proto/adminpb"
	"github.com/flotilla-kv/flotilla/proto/metapb"
)

// rereadAfter is how long after its first look a driver reads once more what people
// have set: a swap of the driver before it may have been under way.
const rereadAfter = 10 * time.Second

// readAll reads what people have set: standings, settings, rules. then is called
// once, unless the tenure ends.
func (d *Driver) readAll(then func(error)) {
	start, _ := standingSpan()
	d.readStandings(start, func(err error) {
		if err != nil {
			then(err)
			return
		}
		d.readKey(settingsKey, d.takeSettings, func(err error) {
			if err != nil {
				then(err)
				return
			}
			d.readKey(rulesKey, d.takeRules, then)
		})
	})
}

// readStandings reads the standings of all nodes, page by page.
func (d *Driver) readStandings(start []byte, then func(error)) {
	tenure := d.edits
	_, end := standingSpan()
	d.cfg.KV.Scan(start, end, registryPage, func(rows []KeyValue, err error) {
		if tenure.closed {
			return
		}
		for _, row := range rows {
			var s metapb.NodeStanding
			if err == nil {
				s, err = decodeStanding(row.Key, row.Value, row.Version)
			}
			if err == nil {
				d.cluster.setStanding(d.cluster.node(numberOf(row.Key)), s, row.Version)
			}
		}
		if err == nil && len(rows) >= registryPage {
			d.readStandings(append(bytes.Clone(rows[len(rows)-1].Key), 0), then)
			return
		}
		then(err)
	})
}

func (d *Driver) readKey(
	key string, take func([]byte, hlc.Timestamp) error, then func(error),
) {
	tenure := d.edits
	d.cfg.KV.Get([]byte(key), func(value []byte, version hlc.Timestamp, err error) {
		if tenure.closed {
			return
		}
		if err == nil && version != 0 {
			err = take(value, version)
		}
		then(err)
	})
}

func (d *Driver) takeSettings(value []byte, version hlc.Timestamp) error {
	if version < d.cluster.setAt {
		return nil // a read that was overtaken
	}
	s := &metapb.PlacementSettings{}
	if err := proto.Unmarshal(value, s); err != nil {
		return fmt.Errorf("read the settings of placement in range 1: %w", err)
	}
	d.cluster.settings, d.cluster.setAt = s, version
	d.cluster.usable()
	return nil
}

// takeRules puts the stored rules in force. A driver that does not understand them
// must not act by others: it would move everything.
func (d *Driver) takeRules(value []byte, _ hlc.Timestamp) error {
	p := &metapb.RuleSet{}
	if err := proto.Unmarshal(value, p); err != nil {
		return fmt.Errorf("read the rules of placement in range 1: %w", err)
	}
	if p.GetVersion() <= d.cluster.ruleSet.Version() {
		return nil
	}
	s, faults := rules.New(p)
	if len(faults) > 0 {
		return fmt.Errorf("read the rules of placement in range 1: %s", strings.Join(faults, "; "))
	}
	d.cluster.setRules(s)
	return nil
}

// reread looks once more, after a while, at what people have set.
func (d *Driver) reread() {
	if d.readTwice || d.cluster.now < d.cluster.since+rereadAfter {
		return
	}
	d.readTwice = true
	d.readAll(func(err error) {
		if err != nil {
			d.log.Warn("settings of placement not read again", "error", err)
		}
	})
}

// Pause stops or resumes the beginning of operators; stored in range 1. Operators
// that run end as they would, and what a person asks for is done. done is called
// once, possibly before Pause returns; ErrAskAgain if not now.
func (d *Driver) Pause(
	paused bool, by string, done func(*metapb.PlacementSettings, error),
) {
	if !d.Active() {
		done(nil, fmt.Errorf("%w: this node does not drive placement", ErrAskAgain))
		return
	}
	want := &metapb.PlacementSettings{Paused: paused}
	if paused {
		if want.PausedBy = by; by == "" {
			want.PausedBy = "somebody"
		}
	}
	d.edits.start(&edit{
		key: []byte(settingsKey),
		decide: func(old []byte, version hlc.Timestamp) ([]byte, bool, error) {
			known := &metapb.PlacementSettings{}
			if err := proto.Unmarshal(old, known); err != nil {
				return nil, false, fmt.Errorf("read the settings of placement: %w", err)
			}
			next, err := marshal(want)
			return next, !proto.Equal(known, want), err
		},
		done: func(value []byte, version hlc.Timestamp, err error) {
			if err == nil {
				err = d.takeSettings(value, version)
			}
			if err != nil {
				done(nil, err)
				return
			}
			d.log.Info("placement is paused or goes on", "op", pauseWords(d.cluster.settings))
			done(d.cluster.settings, nil)
		},
	})
}

func pauseWords(s *metapb.PlacementSettings) string {
	if s.GetPaused() {
		return "paused by " + s.GetPausedBy()
	}
	return "goes on"
}

// Rules returns the rules in force. The returned value must not be changed.
func (d *Driver) Rules() *metapb.RuleSet { return d.cluster.ruleSet.Proto() }

// SetRules validates and stores rules, or with DryRun says what would move. Faults
// come in the reply, not as an error; nothing changed then. The version in the
// request is that of the set which it replaces: if that is not in force any more the
// error wraps ErrRefused. done is called once, possibly before SetRules returns;
// ErrAskAgain if not now.
func (d *Driver) SetRules(
	r *adminpb.SetRulesRequest, done func(*adminpb.SetRulesReply, error),
) {
	c := d.cluster
	switch {
	case !d.Active():
		done(nil, fmt.Errorf("%w: this node does not drive placement", ErrAskAgain))
		return
	case !d.planning:
		done(nil, fmt.Errorf("%w: not all nodes have told yet what they hold", ErrAskAgain))
		return
	case r.GetRules().GetVersion() != c.ruleSet.Version():
		done(nil, staleRules(c.ruleSet.Version(), r.GetRules().GetVersion()))
		return
	}
	next := proto.CloneOf(r.GetRules())
	next.Version++
	set, faults := rules.New(next)
	reply := &adminpb.SetRulesReply{Rules: next, Faults: faults}
	if len(faults) == 0 {
		reply.Faults, reply.Warnings = rules.Check(set, c.ruleSet, c.localities())
	}
	if len(reply.Faults) > 0 {
		done(reply, nil)
		return
	}
	d.preview(set, reply, func(reply *adminpb.SetRulesReply, err error) {
		if err != nil || r.GetDryRun() {
			done(reply, err)
			return
		}
		d.storeRules(r.GetRules().GetVersion(), next, set, func(err error) {
			if err != nil {
				done(nil, err)
				return
			}
			done(reply, nil)
		})
	})
}

func staleRules(now, given uint64) error {
	return fmt.Errorf("%w: the rules have version %d now, these were made for version %d: get the "+
		"rules again and repeat the change", ErrRefused, now, given)
}

func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// storeRules writes rules over those of the given version, and puts them in force.
func (d *Driver) storeRules(
	over uint64, p *metapb.RuleSet, set *rules.Set, done func(error),
) {
	next, err := marshal(p)
	if err != nil {
		done(err)
		return
	}
	d.edits.start(&edit{
		key: []byte(rulesKey),
		decide: func(old []byte, version hlc.Timestamp) ([]byte, bool, error) {
			if version != 0 && bytes.Equal(old, next) {
				return nil, false, nil // written, by this attempt or one whose outcome was lost
			}
			known := &metapb.RuleSet{}
			if err := proto.Unmarshal(old, known); err != nil {
				return nil, false, fmt.Errorf("read the rules of placement: %w", err)
			}
			if known.GetVersion() != over {
				return nil, false, staleRules(known.GetVersion(), over)
			}
			return next, true, nil
		},
		done: func(_ []byte, _ hlc.Timestamp, err error) {
			if err == nil && set.Version() > d.cluster.ruleSet.Version() {
				d.log.Info("rules of placement change", "op", fmt.Sprint(set.Version()))
				d.cluster.setRules(set)
			}
			done(err)
		},
	})
}

// localities returns those of all nodes that may hold copies, live or not.
func (c *cluster) localities() []rules.Labels {
	var all []rules.Labels
	for _, id := range c.order {
		if n := c.nodes[id]; n.desc != nil && n.standing < standingDecommissioning {
			all = append(all, n.labels)
		}
	}
	return all
}

// numberOf returns the node id in a numbered key.
func numberOf(key []byte) ids.NodeID {
	var id ids.NodeID
	for _, b := range key[min(2, len(key)):] {
		id = id<<8 | ids.NodeID(b)
	}
	return id
}
