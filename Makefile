# What a contributor needs. "make help" lists the targets.
#
# Building and testing need Go, make and bash; the race detector a C compiler.
# Everything else comes through Go's module downloads.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
BIN     := bin
# Version and commit are what the Go tool finds in git, if git answers here.
VCS     ?= $(shell git rev-parse --verify HEAD >/dev/null 2>&1 && echo true || echo false)
BUILD   := -trimpath -buildvcs=$(VCS)

export CGO_ENABLED := 0

# The simulation: how many seeds, from which on, and the longest it may take.
SEEDS       ?= 40
FIRST       ?= 1
SIM_TIMEOUT ?= 15m
# The load that is compared: see scripts/bench-cluster and docs/BENCHMARKS.md.
DURATION ?= 30s

# Packages with goroutines of their own, or called from many.
CONCURRENT := ./internal/hlc/... ./store/... ./support ./multiraft ./ranges ./rpc ./server ./client/... ./loadtest
# Tests with a target of their own.
APART := /internal/(sim|process)$$

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build flotilla-node, flotilla and flotilla-loadtest into bin/
	@mkdir -p $(BIN)
	$(GO) build $(BUILD) -o $(BIN)/flotilla-node ./cmd/node
	$(GO) build $(BUILD) -o $(BIN)/flotilla ./cmd/flotilla
	$(GO) build $(BUILD) -o $(BIN)/flotilla-loadtest ./cmd/loadtest

.PHONY: cluster
cluster: build ## build, then start three nodes on this machine and wait until they are healthy
	@scripts/cluster up

.PHONY: test
test: lint generate-check test-unit test-race sim canary test-process ## all that a change must pass

.PHONY: lint
lint: ## the house rules, a build without tests, and go vet
	$(GO) test -count=1 ./internal/lint
	$(GO) build ./...
	$(GO) vet ./...
	$(GO) vet -tags canary ./...

.PHONY: test-unit
test-unit: ## unit tests, and all that is tested in one process
	$(GO) test -timeout 10m $$($(GO) list ./... | grep -Ev '$(APART)')

.PHONY: test-race
test-race: ## the packages with concurrency under the race detector (needs a C compiler)
	@if command -v "$$($(GO) env CC)" >/dev/null; then set -x; \
	  CGO_ENABLED=1 $(GO) test -race -short -timeout 15m $(CONCURRENT); \
	else echo "test-race: SKIPPED: no C compiler ($$($(GO) env CC)), which the race detector needs"; fi

.PHONY: sim
sim: ## simulated clusters with faults: SEEDS=40 FIRST=1
	$(GO) test -count=1 -timeout $(SIM_TIMEOUT) ./internal/sim -sim.seeds=$(SEEDS) -sim.first=$(FIRST)

.PHONY: canary
canary: ## plant known bugs and demand that the simulation finds each
	$(GO) test -count=1 -timeout 60m -tags canary ./internal/canary ./support ./multiraft ./ranges ./rpc \
	  ./internal/sim \
	  -run 'Canary|Planted|Misspelled|SwitchedOff'

.PHONY: test-process
test-process: ## real processes on loopback, killed and stopped
	@[ "$$(id -u)" = 0 ] || echo "test-process: SKIPPED without root: nodes cut off in network namespaces"
	$(GO) test -count=1 -timeout 10m ./internal/process

.PHONY: bench
bench: ## micro-benchmarks of all packages
	$(GO) test -run '^$$' -bench . -benchmem -timeout 30m $$($(GO) list ./... | grep -Ev '$(APART)')

.PHONY: bench-cluster
bench-cluster: build ## loads against three nodes on this machine: DURATION=30s
	@DURATION=$(DURATION) scripts/bench-cluster

.PHONY: bench-peers
bench-peers: build ## the same load against etcd, if it is installed, and the ratio
	@DURATION=$(DURATION) scripts/bench-peers

.PHONY: generate
generate: ## write the Go code of the .proto files
	$(GO) run -modfile=tools.mod tools/protogen/main.go

.PHONY: generate-check
generate-check: ## fail if "make generate" would change a file
	$(GO) run -modfile=tools.mod tools/protogen/main.go -check

.PHONY: clean
clean: ## remove bin/ (scripts/cluster wipe removes a cluster's data)
	rm -rf $(BIN)
