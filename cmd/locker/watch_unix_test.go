//go:build unix

package main

import (
	"os"
	"syscall"
	"testing"

	"github.com/jagregory/locker/v2/internal/locktest"
)

// A signal reaches the whole process, so this test is not parallel.
func TestWatch_IsInterruptedByASignal(t *testing.T) {
	b := locktest.Setup(t)
	locktest.Lock(t, worker(t, b), "a", "one")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	code := make(chan int, 1)
	go func() {
		code <- execute([]string{"watch", "a", "--endpoints", b.Server.Endpoints()[0]}, nil, w, os.Stderr)
		_ = w.Close()
	}()
	if n, err := r.Read(make([]byte, 100)); err != nil || n == 0 {
		t.Fatal(n, err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if got := locktest.Receive(t, code); got != 0 {
		t.Errorf("exit code %d", got)
	}
}
