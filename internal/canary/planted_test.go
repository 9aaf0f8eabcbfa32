//go:build canary

package canary

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/invariant"
)

func TestOnlyThePlantedBugIsOn(t *testing.T) {
	defer Plant("")
	for _, b := range Bugs() {
		Plant(b)
		for _, other := range Bugs() {
			if On(other) != (other == b) {
				t.Fatalf("%s is planted; On(%s) is %v", b, other, On(other))
			}
		}
	}
	Plant("")
	for _, b := range Bugs() {
		if On(b) {
			t.Fatalf("%s is on although nothing is planted", b)
		}
	}
}

func TestAMisspelledCanaryStopsTheProcess(t *testing.T) {
	defer func() {
		if _, ok := recover().(invariant.Violation); !ok {
			t.Fatal("an unknown name was planted")
		}
	}()
	Plant("skip-sink")
}
