package main

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// parallel is the flag of go test.
const parallel = "test.parallel"

// TestMain lets the test's own program be a client process, as the harness starts itself. More rounds go on
// at once than there are cores, for they mostly wait: for leases to run out, and for nothing to happen.
func TestMain(m *testing.M) {
	if err := checkClock(); err != nil {
		exit(err)
	}
	if os.Getenv(clientCommand) != "" {
		exit(clientProcess(os.Stdin, os.Stdout))
	}
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == parallel })
	if !given {
		if err := flag.Set(parallel, strconv.Itoa(3*runtime.GOMAXPROCS(0))); err != nil {
			exit(err)
		}
	}
	goleak.VerifyTestMain(m)
}
