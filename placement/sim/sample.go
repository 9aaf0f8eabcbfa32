package sim

import (
	"fmt"
	"io"
	"time"

	"github.com/flotilla-kv/flotilla/internal/ids"
)

// Sample is what every node had at one time.
type Sample struct {
	At    time.Duration
	Nodes []NodeSample // by id
}

// NodeSample is what one node had.
type NodeSample struct {
	ID      ids.NodeID
	Up      bool
	Leaders int
	Copies  int
	Bytes   int64   // of all copies
	CPU     float64 // cores that its ranges ask for
}

// Sample returns what every node has now.
func (w *World) Sample() Sample {
	s := Sample{At: w.now, Nodes: make([]NodeSample, 0, len(w.nodes))}
	for _, n := range w.nodes {
		s.Nodes = append(s.Nodes, NodeSample{
			ID: n.id, Up: n.up, Leaders: len(n.leads), Copies: len(n.holds), Bytes: n.bytes,
			CPU: n.cpu / microsPerCore,
		})
	}
	return s
}

// Samples returns what was sampled while time passed, the oldest first. It must not
// be changed.
func (w *World) Samples() []Sample { return w.samples }

// WriteCSV writes samples for plotting, one line per node and time.
func WriteCSV(out io.Writer, samples []Sample) error {
	if _, err := fmt.Fprintln(out, "seconds,node,up,leaders,copies,bytes,cores"); err != nil {
		return fmt.Errorf("write samples: %w", err)
	}
	for _, s := range samples {
		for _, n := range s.Nodes {
			up := 0
			if n.Up {
				up = 1
			}
			if _, err := fmt.Fprintf(out, "%.0f,%v,%d,%d,%d,%d,%.3f\n", s.At.Seconds(), n.ID, up,
				n.Leaders, n.Copies, n.Bytes, n.CPU); err != nil {
				return fmt.Errorf("write samples: %w", err)
			}
		}
	}
	return nil
}
