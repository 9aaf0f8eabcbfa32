// Package process holds the tests that run real processes: nodes built from
// this tree, on loopback or in network namespaces of their own, broken by kill
// -9, SIGTERM, SIGSTOP, links that go down and proxies that cut replies. A
// cluster's processes are stopped by their own ids when its test ends; their
// logs are kept when it failed.
package process
