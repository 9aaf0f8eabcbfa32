package loadtest

import (
	"bufio"
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Environment is what a number depends on beside the code.
type Environment struct {
	CPUs       int               `json:"cpus"`
	GoMaxProcs int               `json:"gomaxprocs"`
	CPUModel   string            `json:"cpu_model"`
	Memory     string            `json:"memory"`
	OS         string            `json:"os"`
	Arch       string            `json:"arch"`
	Go         string            `json:"go"`
	Commit     string            `json:"commit"`
	Flags      map[string]string `json:"flags"` // of the tool, defaults included
}

// unknown stands where the system does not say.
const unknown = "unknown"

// DescribeEnvironment says where this process runs. commit may be empty: then
// it is what the build recorded.
func DescribeEnvironment(commit string, flags map[string]string) Environment {
	if commit == "" {
		commit = buildCommit()
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = nil
	}
	return Environment{
		CPUs:       runtime.NumCPU(),
		GoMaxProcs: runtime.GOMAXPROCS(0),
		CPUModel:   lineOf("/proc/cpuinfo", "model name"),
		Memory:     lineOf("/proc/meminfo", "MemTotal"),
		OS:         strings.TrimSpace(runtime.GOOS + " " + string(bytes.TrimSpace(kernel))),
		Arch:       runtime.GOARCH,
		Go:         runtime.Version(),
		Commit:     commit,
		Flags:      flags,
	}
}

// lineOf returns what stands behind the colon of a line of a file of /proc.
func lineOf(path, name string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return unknown
	}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

func buildCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	commit, dirty := unknown, ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	return commit + dirty
}
