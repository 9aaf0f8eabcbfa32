package loadtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Operation is a kind of operation, by the names of YCSB.
type Operation uint8

// The operations.
const (
	Read Operation = iota
	Update
	Insert
	Scan
	ReadModifyWrite

	operationCount = iota
)

// String returns the operation's name.
func (o Operation) String() string {
	switch o {
	case Read:
		return "read"
	case Update:
		return "update"
	case Insert:
		return "insert"
	case Scan:
		return "scan"
	case ReadModifyWrite:
		return "rmw"
	default:
		return "none"
	}
}

// Share is the part of an operation in a workload.
type Share struct {
	Operation Operation
	Percent   int
}

// Workload is a mix of operations.
type Workload struct {
	Name         string
	Mix          []Share // percents add up to 100
	Distribution Distribution
}

const (
	maxScanRows   = 100 // a scan takes 1 to so many rows, evenly
	wholeWorkload = 100 // percent
)

// Workloads lists all workloads that can be run: those of YCSB, and one for
// each of the two basic operations.
func Workloads() []Workload {
	mix := func(shares ...Share) []Share { return shares }
	return []Workload{
		{"ycsb-a", mix(Share{Read, 50}, Share{Update, 50}), Zipfian},
		{"ycsb-b", mix(Share{Read, 95}, Share{Update, 5}), Zipfian},
		{"ycsb-c", mix(Share{Read, 100}), Zipfian},
		{"ycsb-d", mix(Share{Read, 95}, Share{Insert, 5}), Latest},
		{"ycsb-e", mix(Share{Scan, 95}, Share{Insert, 5}), Zipfian},
		{"ycsb-f", mix(Share{Read, 50}, Share{ReadModifyWrite, 50}), Zipfian},
		{"put", mix(Share{Update, 100}), Uniform},
		{"get", mix(Share{Read, 100}), Uniform},
	}
}

// FindWorkload returns a workload by its name; the error lists all names.
func FindWorkload(name string) (Workload, error) {
	all := Workloads()
	i := slices.IndexFunc(all, func(w Workload) bool { return w.Name == name })
	if i >= 0 {
		return all[i], nil
	}
	names := make([]string, len(all))
	for i, w := range all {
		names[i] = w.Name
	}
	return Workload{}, fmt.Errorf("no workload %q; there are %s", name, strings.Join(names, ", "))
}

// loading is the workload that inserts the records.
func loading() Workload {
	return Workload{Name: "load", Mix: []Share{{Insert, wholeWorkload}}, Distribution: Uniform}
}

// draw draws an operation.
func (w *Workload) draw(r *rand.Rand) Operation {
	if len(w.Mix) == 1 {
		return w.Mix[0].Operation
	}
	at := r.IntN(wholeWorkload)
	for _, s := range w.Mix {
		if at -= s.Percent; at < 0 {
			return s.Operation
		}
	}
	return w.Mix[len(w.Mix)-1].Operation
}
