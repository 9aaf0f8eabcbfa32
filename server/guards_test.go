package server

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/proto/kv"
)

// carries says for each verb which fields of a request bring keys. A verb
// without an entry here fails the test below.
func carries() map[kv.Verb][]string {
	return map[kv.Verb][]string{
		kv.VerbGet:            {"Key"},
		kv.VerbPut:            {"Key"},
		kv.VerbDelete:         {"Key"},
		kv.VerbCompareAndSwap: {"Key"},
		kv.VerbScan:           {"Key", "End"},
		kv.VerbDeleteRange:    {"Key", "End"},
		kv.VerbAtomic:         {"Key", "Op"},
		kv.VerbReadTimestamp:  {"Key", "End"},
	}
}

// lawful is a request of a verb that a client may send; in every field that can
// bring a key there is one.
func lawful(v kv.Verb) *kv.Request {
	user := func(s string) []byte { return append([]byte{kv.UserPrefix}, s...) }
	r := &kv.Request{Verb: v, Key: user("k")}
	if slices.Contains(carries()[v], "End") {
		r.End = user("x")
	}
	if slices.Contains(carries()[v], "Op") {
		r.Ops = []kv.Op{{Key: user("a")}, {Key: user("b")}}
	}
	return r
}

// Bug class 44: a check of the outer request alone is bypassed by what is nested
// in it. For every verb, every place that can bring a key is tried with keys
// that are not a user's: the system range's, the node's own records', none.
func TestEveryKeyOfEveryVerbIsChecked(t *testing.T) {
	t.Parallel()
	foreign := [][]byte{{kv.SystemPrefix}, {kv.SystemPrefix, 0xff}, {0}, {1, 2}, {0xff}, {}}
	for number := range 256 {
		v := kv.Verb(number)
		if strings.HasPrefix(v.String(), "verb(") {
			continue // unknown; refused by the ranges
		}
		if carries()[v] == nil {
			t.Errorf("the new verb %v has no entry here", v)
		}
		if bad := refuse(lawful(v), nil); bad != nil {
			t.Errorf("%v is refused: %s", v, bad.Message)
		}
		for _, k := range foreign {
			for _, place := range places(v) {
				r := lawful(v)
				*place.of(r) = k
				optional := len(k) == 0 && (v == kv.VerbAtomic && place.name == "Key" ||
					v == kv.VerbReadTimestamp && place.name == "End")
				if refuse(r, nil) == nil && !optional {
					t.Errorf("%v lets %x in as %s", v, k, place.name)
				}
			}
		}
	}
}

type place struct {
	name string
	of   func(*kv.Request) *[]byte
}

func places(v kv.Verb) (all []place) {
	for _, name := range carries()[v] {
		switch name {
		case "Key":
			all = append(all, place{name, func(r *kv.Request) *[]byte { return &r.Key }})
		case "End":
			all = append(all, place{name, func(r *kv.Request) *[]byte { return &r.End }})
		case "Op":
			for i := range lawful(v).Ops {
				all = append(all, place{fmt.Sprint("key of operation ", i),
					func(r *kv.Request) *[]byte { return &r.Ops[i].Key }})
			}
		}
	}
	return all
}

// A new field of a request that could bring a key must be looked at, too.
func TestEveryFieldThatCouldBringAKeyIsKnown(t *testing.T) {
	t.Parallel()
	known := []string{
		"Request.Key", "Request.End", "Request.Value", "Request.Expected", "Request.Ops",
		"Op.Key", "Op.Value", "Op.Expected",
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[kv.Request](), reflect.TypeFor[kv.Op]()} {
		for f := range typ.Fields() {
			switch f.Type.Kind() {
			case reflect.Slice, reflect.String, reflect.Map, reflect.Pointer, reflect.Interface:
				if name := typ.Name() + "." + f.Name; !slices.Contains(known, name) {
					t.Errorf("%s is new: does it bring a key? See foreignKeys", name)
				}
			}
		}
	}
}
