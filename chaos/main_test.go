package main

import (
	"flag"
	"os"
	"runtime"
	"strconv"
	"testing"

	"go.uber.org/goleak"
)

// parallel is a flag of go test.
const parallel = "test.parallel"

// TestMain runs the test binary as a client process when the harness starts it as one. More
// tests run in parallel than there are cores, because rounds spend most of their time waiting.
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
