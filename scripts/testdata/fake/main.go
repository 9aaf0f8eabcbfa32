// Fake stands in for flotilla-node and flotilla in the test of the cluster
// script: it listens, says that it is ready, and ends when told.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	patience = 20 * time.Second
	pause    = 10 * time.Millisecond
)

func main() {
	if filepath.Base(os.Args[0]) == "flotilla" {
		tool()
		return
	}
	fmt.Println("args:", strings.Join(os.Args[1:], " "))
	flags := map[string]string{}
	for i := 2; i+1 < len(os.Args); i++ {
		flags[os.Args[i]] = os.Args[i+1]
	}
	if err := os.MkdirAll(flags["--data"], 0o755); err != nil {
		fail(err)
	}
	clients, err := net.Listen("tcp", flags["--listen"])
	if err != nil {
		fail(err)
	}
	defer clients.Close()
	web, err := net.Listen("tcp", flags["--http"])
	if err != nil {
		fail(err)
	}
	http.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	go func() { fail(http.Serve(web, nil)) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	fmt.Println("stopped gracefully")
}

// tool is flotilla: health waits until every endpoint accepts, status talks.
func tool() {
	if os.Args[1] != "health" {
		fmt.Println("fake", os.Args[1])
		return
	}
	deadline := time.Now().Add(patience)
	for endpoint := range strings.SplitSeq(os.Args[3], ",") {
		for {
			conn, err := net.Dial("tcp", endpoint)
			if err == nil {
				conn.Close()
				break
			}
			if time.Now().After(deadline) {
				fail(err)
			}
			time.Sleep(pause)
		}
	}
	fmt.Println("healthy")
}

func fail(err error) {
	fmt.Println("error:", err)
	os.Exit(1)
}
