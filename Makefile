# Run "make" for the list of habits.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.1
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0
# Packages whose tests wait more than they compute, and those that compute. The first are tested together, and the
# others after them, so that no lease runs out because a package needs the processors. Those that take longest begin.
WAITING     = ./internal/systest ./examples/mesh ./interop/faults ./... ./examples/... $(CONTRIB:%=./%/...)
COMPUTING   = ./interop ./chaos/... ./bench/...
# What tests the commit that is checked out, which go test does not know: its results must not be cached.
COMMITTED   = ./interop/release
PACKAGES    = $(WAITING) $(COMPUTING) $(COMMITTED)
# Modules that programs require, so that they replace nothing.
CONTRIB     = $(patsubst %/go.mod,%,$(wildcard contrib/*/go.mod))
# Test programs without debug information, which link faster, and in which the race detector watches everything but
# the etcd server in the process, which runs faster.
LEAN        = -ldflags="-s -w" -gcflags=go.etcd.io/etcd/server/v3/...=-race=false -gcflags=go.etcd.io/raft/v3/...=-race=false -gcflags=go.etcd.io/bbolt/...=-race=false

# For make faults: how long, and the seed of a run to be repeated (none: another each time).
DURATION ?= 1h
SEED     ?=
# For make lint: where the known vulnerabilities are.
VULNDB   ?= https://vuln.go.dev

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

test: ## all tests of all modules, with the race detector if there is a C compiler
	@race=-race; why=$$(go build -race runtime/cgo 2>&1) || { race=; export CGO_ENABLED=0; echo "make test: WITHOUT the race detector: $$why"; }; \
	export GORACE=atexit_sleep_ms=0; set -x; \
	go test $$race $(LEAN) -timeout 15m -p 4 $(WAITING) && go test $$race $(LEAN) -timeout 15m $(COMPUTING) && \
	go test $$race $(LEAN) -timeout 15m -count 1 $(COMMITTED)

hammer: ## the tests that draw what they do at random, for ten minutes
	go test -race -timeout 1h -run 'TestLock_ManyGoroutinesNeverHoldANameAtOnce|TestModel_SequencesOfCallsAgree' ./internal/systest -hammer 5m -rapid.checks 500

lint: ## gofmt, go.mod and its like complete, go vet, staticcheck, govulncheck
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	@for module in . bench chaos examples interop; do (cd $$module && GOWORK=off go mod tidy -diff) || exit 1; done
	@for module in $(CONTRIB); do .ci/tidy $$module || exit 1; done
	@before=$$(cksum <go.work.sum); { go list -m all >/dev/null && go mod download; } || exit 1; test "$$before" = "$$(cksum <go.work.sum)" || \
		{ echo "go.work.sum was not complete; what it lacked has been added"; exit 1; }
	go vet $(PACKAGES)
	GOOS=darwin go vet ./cmd/locker
	GOOS=windows go vet ./cmd/locker
	go run $(STATICCHECK) $(PACKAGES)
	@echo go run $(GOVULNCHECK) -db $(VULNDB) $(PACKAGES)
	@found=$$(go run $(GOVULNCHECK) -db $(VULNDB) $(PACKAGES) 2>&1) && echo "$$found" || { echo "$$found"; \
		case "$$found" in *"govulncheck: fetching vulnerabilities: "*) echo "lint: NOT CHECKED for known vulnerabilities, $(VULNDB) is out of reach";; *) exit 1;; esac; }

cover: ## coverage of the library by its own tests
	go test -coverpkg=github.com/jagregory/locker/v2/... -coverprofile=coverage.txt . ./internal/... ./embedtest/...
	go tool cover -func=coverage.txt | tail -1

fuzz: ## everything that parses, a minute each
	go test -run '^$$' -fuzz FuzzNamesAndKeys -fuzztime 1m ./internal/key
	go test -run '^$$' -fuzz FuzzAnswersOfAWatchStream -fuzztime 1m ./internal/watchmux
	for target in FuzzNames FuzzOptions FuzzEntries FuzzChanges; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime 1m . || exit 1; done

faults: ## real processes under faults: DURATION=1h, SEED=n to repeat a run
	go run ./chaos -duration $(or $(DURATION),1h) -seed $(or $(SEED),0) -round 3m -members 3,1

mutants: ## mistakes put into the library, which the same harness must catch
	go test -count=1 -timeout 30m -run Mutants -v ./chaos -mutants

load: ## 1,000 clients on 100 names, and 100,000 names, three minutes each, under faults
	go run ./chaos -load crowd -duration 3m -round 3m
	go run ./chaos -load names -duration 3m -round 3m

bench: ## the speed table, beside bare etcd and etcd's Mutex; a quarter of an hour
	go run ./bench -out bench/results

quickstart: ## the first example
	go run ./examples/quickstart

.PHONY: help test hammer lint cover fuzz faults mutants load bench quickstart
