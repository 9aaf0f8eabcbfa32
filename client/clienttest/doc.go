// Package clienttest is a cluster in memory, for tests of programs that use
// package client: real connections on loopback, real routing and retries, no
// disks and no raft. It starts in milliseconds, and breaks on request: nodes
// stop, leaders move, ranges split and merge, answers are lost.
//
//	s := clienttest.Start(t, 3)
//	c, err := client.Open(ctx, s.Endpoints())
//
// It keeps the promises of a cluster as long as its process lives, and nothing
// longer. All methods of Server are safe for concurrent use. Its goroutines
// (one per node, and one per stream, of grpc) end with the test.
package clienttest
