package loadtest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// clockTick is the unit of times in /proc: Linux has promised 1/100 s to
// programs ever since its own ticks went another way.
const clockTick = 10 * time.Millisecond

// processCPU returns the processor time, user and system, that a process has
// used so far. Linux only.
func processCPU(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("processor time of %d: %w", pid, err)
	}
	return parseStat(stat)
}

// parseStat reads fields 14 and 15. The second field is the name of the
// program, in parentheses, and may itself hold blanks and parentheses.
func parseStat(stat []byte) (time.Duration, error) {
	const user, system = 11, 12 // counted from the field after the name
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= system {
		return 0, fmt.Errorf("processor time: %d fields in the statistics", len(fields))
	}
	u, errUser := strconv.ParseInt(string(fields[user]), 10, 64)
	s, errSystem := strconv.ParseInt(string(fields[system]), 10, 64)
	if errUser != nil || errSystem != nil {
		return 0, fmt.Errorf("processor time: %q and %q", fields[user], fields[system])
	}
	return time.Duration(u+s) * clockTick, nil
}

// cpuSample is the processor time used up to a moment, and the operations done.
type cpuSample struct {
	self    time.Duration
	servers map[int]time.Duration // by process id; one that is gone is missing
	done    int64
	taken   bool
}

func sampleCPU(servers []int, done int64) cpuSample {
	s := cpuSample{servers: make(map[int]time.Duration), done: done, taken: true}
	s.self, _ = processCPU(os.Getpid()) // 0 where there is no /proc
	for _, pid := range servers {
		if used, err := processCPU(pid); err == nil {
			s.servers[pid] = used
		}
	}
	return s
}

// CPU is the processor time spent in the window per successful operation.
type CPU struct {
	// ServerMicros sums over all server processes; absent if none were named
	// or one of them was not there all the time.
	ServerMicros *float64 `json:"server_us_per_op,omitempty"`
	// ClientMicros is this process's share.
	ClientMicros float64 `json:"client_us_per_op"`
	// ServerCores and ClientCores are processors kept busy.
	ServerCores float64 `json:"server_cores"`
	ClientCores float64 `json:"client_cores"`
	// MissingPIDs are server processes that were not there all the time.
	MissingPIDs []int `json:"missing_pids,omitempty"`
}

// cpuBetween says what was used between two samples, so far apart.
func cpuBetween(servers []int, a, b cpuSample, apart time.Duration) *CPU {
	operations := float64(b.done - a.done)
	if !a.taken || !b.taken || operations == 0 || apart <= 0 {
		return nil
	}
	perOperation := func(d time.Duration) float64 { return float64(d.Microseconds()) / operations }
	used, result := time.Duration(0), CPU{}
	for _, pid := range servers {
		before, there := a.servers[pid]
		after, still := b.servers[pid]
		if !there || !still || after < before { // less: another process of the same id
			result.MissingPIDs = append(result.MissingPIDs, pid)
			continue
		}
		used += after - before
	}
	if len(servers) > 0 && len(result.MissingPIDs) == 0 {
		micros := perOperation(used)
		result.ServerMicros = &micros
	}
	result.ServerCores = used.Seconds() / apart.Seconds()
	result.ClientMicros = perOperation(b.self - a.self)
	result.ClientCores = (b.self - a.self).Seconds() / apart.Seconds()
	return &result
}
