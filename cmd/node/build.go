package main

import (
	"runtime"
	"runtime/debug"
)

// shortCommit is how much of a commit's hash people read.
const shortCommit = 12

type build struct{ version, commit, platform string }

// readBuild reads what the Go tool wrote into the binary; no flags of the linker
// are needed.
func readBuild() build {
	b := build{
		version: "unreleased", commit: "unknown",
		platform: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.version = v
	}
	changed := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.commit = s.Value[:min(len(s.Value), shortCommit)]
		case "vcs.modified":
			if s.Value == "true" {
				changed = " with changes"
			}
		}
	}
	b.commit += changed
	return b
}
