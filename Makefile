# Run "make" for the list of habits.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.1
PACKAGES    = ./... ./bench/... ./examples/... ./interop/...

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

test: ## all tests of all modules, with the race detector
	go test -race -timeout 10m $(PACKAGES)

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	go vet $(PACKAGES)
	go run $(STATICCHECK) $(PACKAGES)

cover: ## coverage of the library by its own tests
	go test -coverpkg=github.com/jagregory/locker/v2/... -coverprofile=coverage.txt . ./internal/... ./embedtest/...
	go tool cover -func=coverage.txt | tail -1

fuzz: ## the key codec, for a minute
	go test -run '^$$' -fuzz FuzzNamesAndKeys -fuzztime 1m ./internal/key

bench: ## the speed table, beside bare etcd and etcd's Mutex; a quarter of an hour
	go run ./bench -out bench/results

quickstart: ## the first example
	go run ./examples/quickstart

.PHONY: help test lint cover fuzz bench quickstart
