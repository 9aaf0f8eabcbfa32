//go:build faultclock

package osclock

import (
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// FaultFile is the variable that names a file with the present fault of the wall
// clock, as in 10m or -600s, in builds with the tag faultclock. A file that is
// missing or empty means none. Monotonic clocks stay right.
const FaultFile = "FLOTILLA_FAULTCLOCK_FILE"

// faultEvery is how often the file is looked at, at most.
const faultEvery = 5 * time.Millisecond

// wallFault returns the fault of the wall clock, nil without the variable. A
// fault that cannot be read stops the process: a test of wrong clocks whose
// clocks are right shows nothing.
func wallFault() func() time.Duration {
	path := os.Getenv(FaultFile)
	if path == "" {
		return nil
	}
	//lint:allow clock only builds for tests have this file
	start := time.Now()
	var fault, read atomic.Int64
	fault.Store(int64(readFault(path)))
	return func() time.Duration {
		now := int64(time.Since(start)) //lint:allow clock as above
		if last := read.Load(); now-last >= int64(faultEvery) && read.CompareAndSwap(last, now) {
			fault.Store(int64(readFault(path)))
		}
		return time.Duration(fault.Load())
	}
}

func readFault(path string) time.Duration {
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) || err == nil && strings.TrimSpace(string(text)) == "" {
		return 0
	}
	var d time.Duration
	if err == nil {
		d, err = time.ParseDuration(strings.TrimSpace(string(text)))
	}
	if err != nil {
		//lint:allow panic only builds for tests have this file
		panic("read the fault of the wall clock: " + err.Error())
	}
	return d
}
