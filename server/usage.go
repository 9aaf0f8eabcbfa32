package server

import (
	"math"
	"syscall"
	"time"
)

// usageWindow is over how long the processor time of the process is averaged: what
// was used so long ago counts 1/e.
const usageWindow = 10 * time.Second

// usage averages how many processors this process keeps busy. It is worked out when a
// report goes out, from two figures that the system counts anyway.
type usage struct {
	at   time.Duration // of the last sample
	cpu  time.Duration // used by then
	load float64       // processors
}

// sample takes the processor time used until now, and returns the decayed average of
// processors in use. The first sample has nothing to compare with: 0.
func (u *usage) sample(now, cpu time.Duration) float64 {
	passed := now - u.at
	if u.at != 0 && passed > 0 {
		used := max(0, (cpu-u.cpu).Seconds()/passed.Seconds())
		u.load += (used - u.load) * (1 - math.Exp(-passed.Seconds()/usageWindow.Seconds()))
	}
	u.at, u.cpu = max(now, 1), cpu
	return u.load
}

// processorTime is what the process has used so far; 0 if the system does not say.
func processorTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
