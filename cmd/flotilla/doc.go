// Command flotilla is the command line of a Flotilla cluster: keys and values,
// status and health, nodes, ranges and placement, import and export.
//
// It is a thin layer over package client. What it keeps:
//
//   - stdout is data, stderr is talk: a pipe never sees a progress line.
//   - -o json is a contract: one object, or one object per line for streams.
//   - What takes long (drain, decommission, merge, relocate, scatter) is done by
//     the cluster; the command only watches, and may be interrupted and repeated.
//   - The cluster refuses what would do harm, and says why; nothing is decided
//     here. What would move data by a change of rules asks for --yes.
//   - Exit codes tell scripts what happened (exit.go; flotilla --help).
//   - An error names what was tried, what is known, and what to do next.
//   - Every global flag can be given as FLOTILLA_…; a flag wins over the
//     environment, the environment over the profile (.cluster/endpoints, found
//     upward from the working directory, as scripts/cluster writes it).
//
// Goroutines: those of package client, and the writers of kv import, which end
// before the command does.
package main
