//go:build canary

package rpc

import (
	"testing"

	"github.com/flotilla-kv/flotilla/internal/canary"
)

// R9f, switched off where datagrams are adopted, lets them be handled below their
// stamp. Not parallel: the plant is global.
func TestPlantedBugsShow(t *testing.T) {
	defer canary.Plant("")
	for _, bug := range []canary.Bug{canary.StampsIgnored, canary.StampRefusedStepped} {
		for _, k := range []kind{kindRequest, kindGrant} {
			canary.Plant(bug)
			if err := heardBelowTheStamp(t, k); err == nil {
				t.Errorf("%s does not show in frames of kind %d", bug, k)
			}
			canary.Plant("")
		}
	}
}
