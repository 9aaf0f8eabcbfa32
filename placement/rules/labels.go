package rules

import "strings"

// Label is one key=value of a node's locality.
type Label struct {
	Key, Value string
}

// String returns key=value.
func (l Label) String() string { return l.Key + "=" + l.Value }

// Labels is the locality of a node: tiers from large to small. Nil means that
// nothing is known of where the node stands.
type Labels []Label

// ParseLabels reads the locality of a node's descriptor. What is not key=value is
// left out: a node's start refuses it.
func ParseLabels(locality []string) Labels {
	var all Labels
	for _, text := range locality {
		if l, ok := parseLabel(text); ok {
			all = append(all, l)
		}
	}
	return all
}

func parseLabel(text string) (l Label, ok bool) {
	l.Key, l.Value, ok = strings.Cut(text, "=")
	return l, ok && l.Key != "" && l.Value != ""
}

// Value returns what a node has under a key, "" if nothing.
func (l Labels) Value(key string) string {
	for _, x := range l {
		if x.Key == key {
			return x.Value
		}
	}
	return ""
}

// Has says whether a node has a label.
func (l Labels) Has(x Label) bool { return l.Value(x.Key) == x.Value }

// String returns key=value,key=value, or "no locality".
func (l Labels) String() string {
	if len(l) == 0 {
		return "no locality"
	}
	var b strings.Builder
	for i, x := range l {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(x.String())
	}
	return b.String()
}

// Place returns the tiers down to a key, such as region=eu,zone=a for zone: what
// names the place among all. It is "" if the node lacks the key.
func (l Labels) Place(key string) string {
	for i, x := range l {
		if x.Key == key {
			return l[:i+1].String()
		}
	}
	return ""
}

// shared returns how many tiers two nodes share, from the largest on.
func shared(a, b Labels) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// together says whether two nodes are in the same place by a key: they agree on
// it and on all larger tiers, or both lack it.
func together(a, b Labels, key string) bool {
	for i, x := range a {
		if x.Key == key {
			return shared(a, b) > i
		}
	}
	return b.Value(key) == ""
}
