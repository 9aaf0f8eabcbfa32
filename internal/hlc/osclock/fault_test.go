//go:build faultclock

package osclock

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTheFaultOfTheFileIsAddedToTheWallClock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fault")
	t.Setenv(FaultFile, path)
	c := New()
	before := c.Real()
	if err := os.WriteFile(path, []byte("-10m\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for c.Deviation() > -9*time.Minute { // the file is looked at now and then
	}
	if c.Real() > before-9*60_000 {
		t.Fatalf("real clock %d, before the fault %d", c.Real(), before)
	}
	if c.Wall() < before-1000 {
		t.Fatalf("the fault is followed: wall %d, before %d", c.Wall(), before)
	}
	if again := New(); again.Wall() > before-9*60_000 {
		t.Fatalf("a process that starts with the fault has a wall clock of %d", again.Wall())
	}
}
