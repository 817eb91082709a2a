package main

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test's own program be a client process, as the harness starts itself.
func TestMain(m *testing.M) {
	if err := checkClock(); err != nil {
		exit(err)
	}
	if os.Getenv(clientCommand) != "" {
		exit(clientProcess(os.Stdin, os.Stdout))
	}
	goleak.VerifyTestMain(m)
}
