package main

import (
	"context"
	"testing"
)

func TestMistakesAreNamedBeforeAnythingIsOpened(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"run"}, {"run", "ycsb-z"}, {"run", "put", "get"}, {"load", "x"},
		{"run", "put", "--store", "redis"}, {"run", "put", "-o", "xml"},
		{"run", "put", "--clients", "many"}, {"run", "put", "--no-such-flag"},
		{"run", "put", "--clients", "0"}, {"run", "get", "--rate", "-1"},
		{"presplit", "--ranges", "0"}, {"spread", "--parallel", "0"}, {"spread", "--store", "etcd"},
		{"probe", "--dense", "-1"}, {"probe", "--read-rate", "0", "--write-rate", "0"},
		{"reach", "--ranges", "0"}, {"reach", "now"},
	} {
		if code := run(context.Background(), args); code != exitUsage {
			t.Errorf("%q exits with %d", args, code)
		}
	}
	if code := run(context.Background(), []string{"--help"}); code != exitOK {
		t.Errorf("--help exits with %d", code)
	}
}
