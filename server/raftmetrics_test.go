package server

import (
	"reflect"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flotilla-kv/flotilla/multiraft"
	"github.com/flotilla-kv/flotilla/rpc"
	"github.com/flotilla-kv/flotilla/store/rowcache"
)

// collectorOf makes a collector of a function.
type collectorOf func(emitter)

func (collectorOf) Describe(chan<- *prometheus.Desc)      {}
func (c collectorOf) Collect(ch chan<- prometheus.Metric) { c(emitter{ch}) }

// emitted returns the name of every value that collect sends.
func emitted(t *testing.T, collect func(emitter)) map[float64]string {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectorOf(collect))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[float64]string{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			v := m.GetGauge().GetValue() + m.GetCounter().GetValue()
			if other, twice := values[v]; twice {
				t.Errorf("%s and %s show the same figure", other, f.GetName())
			}
			values[v] = f.GetName()
		}
	}
	return values
}

// numbered gives every field of a struct of numbers a value of its own.
func numbered[T any]() (m T, names []string) {
	v := reflect.ValueOf(&m).Elem()
	for i := range v.NumField() {
		v.Field(i).Set(reflect.ValueOf(i + 1).Convert(v.Field(i).Type()))
		names = append(names, v.Type().Field(i).Name)
	}
	return m, names
}

// A counter that somebody adds and nobody can see is not there.
func TestEveryCounterIsExported(t *testing.T) {
	t.Parallel()
	groups, groupNames := numbered[multiraft.Metrics]()
	rows, rowNames := numbered[rowcache.Stats]()
	frames, frameNames := numbered[rpc.Metrics]()
	for what, c := range map[string]struct {
		names  []string
		values map[float64]string
	}{
		"multiraft": {groupNames, emitted(t, func(e emitter) { e.raft(groups) })},
		"rowcache":  {rowNames, emitted(t, func(e emitter) { e.rowCache(rows) })},
		"rpc":       {frameNames, emitted(t, func(e emitter) { e.transport(frames) })},
	} {
		for i, name := range c.names {
			if _, ok := c.values[float64(i+1)]; !ok {
				t.Errorf("%s.Metrics.%s is not in /metrics", what, name)
			}
		}
	}
}
