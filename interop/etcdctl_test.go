package interop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/jagregory/locker/v2"
)

// etcdctl is a running process.
type etcdctl struct {
	process *os.Process
	lines   chan string // its standard output; closed when it exits
}

// etcdctl starts a process that is killed at the end of the test.
func (b bundle) etcdctl(t *testing.T, args ...string) *etcdctl {
	t.Helper()
	cmd := exec.Command(b.release.etcdctl, append(b.ctlFlags(), args...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctl, done := &etcdctl{cmd.Process, make(chan string, 100)}, make(chan struct{})
	go func() {
		defer close(done)
		defer close(ctl.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			ctl.lines <- scanner.Text()
		}
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = ctl.process.Kill()
		<-done
		if t.Failed() {
			t.Logf("etcdctl's standard error: %s", stderr.String())
		}
	})
	return ctl
}

// interrupt ends etcdctl as Ctrl-C does and waits for its end. etcdctl releases what it
// holds.
func (e *etcdctl) interrupt(t *testing.T) {
	t.Helper()
	if err := e.process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for range e.lines {
	}
}

func TestInterop_EtcdctlLockWaitsForALock(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		l := lock(t, c, "a", "")
		theirs := b.etcdctl(t, "lock", b.prefix+"a")
		b.awaitEntries(t, "a", 2)
		if holder, err := c.Get(ctx, "a"); err != nil || holder.Token != l.Token() {
			t.Fatalf("etcdctl did not wait: %+v, %v", holder, err)
		}
		unlock(t, l)
		key := receive(t, theirs.lines) // etcdctl prints its key once it holds
		if !strings.HasPrefix(key, b.prefix+"a/") || key == l.Key() {
			t.Errorf("etcdctl printed %q", key)
		}
		_, err := c.TryLock(ctx, "a", "")
		wantError(t, err, locker.ErrLocked)
		theirs.interrupt(t)
	})
}

func TestInterop_ALockWaitsForEtcdctlLock(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		theirs := b.etcdctl(t, "lock", b.prefix+"a")
		key := receive(t, theirs.lines)
		waiter := lockAsync(ctx, c, "a", "")
		b.awaitEntries(t, "a", 2)
		holder, err := c.Get(ctx, "a")
		if err != nil || fmt.Sprintf("%sa/%x", b.prefix, holder.Lease) != key || len(waiter) != 0 {
			t.Fatalf("Get returned %+v, %v; etcdctl holds %s", holder, err, key)
		}
		theirs.interrupt(t)
		if l := awaitLock(t, waiter); l.Token() <= holder.Token {
			t.Errorf("got token %d after %d", l.Token(), holder.Token)
		}
	})
}

func TestInterop_EtcdctlElectFollowsLocks(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		c := b.client(t)
		l := lock(t, c, "www.example.com", "10.1.1.1")
		observer := b.etcdctl(t, "elect", "-l", b.prefix+"www.example.com")
		shows := func(l *locker.Lock) {
			t.Helper()
			if key, value := receive(t, observer.lines), receive(t, observer.lines); key != l.Key() || value != l.Value() {
				t.Errorf("etcdctl printed %s %q, want %s %q", key, value, l.Key(), l.Value())
			}
		}
		shows(l)
		if err := l.SetValue(testContext(t), "10.1.1.2"); err != nil {
			t.Fatal(err)
		}
		shows(l)
		unlock(t, l)
		shows(lock(t, c, "www.example.com", "10.1.1.3"))
		observer.interrupt(t)
	})
}

func TestInterop_LocksAndEtcdctlElectExcludeEachOther(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		candidate := b.etcdctl(t, "elect", b.prefix+"leader", "theirs")
		receive(t, candidate.lines) // its key
		if value := receive(t, candidate.lines); value != "theirs" {
			t.Fatalf("etcdctl printed the value %q", value)
		}
		_, err := c.TryLock(ctx, "leader", "ours")
		var locked *locker.LockedError
		if !errors.As(err, &locked) || locked.Holder.Value != "theirs" {
			t.Errorf("TryLock returned %v, want a LockedError with the holder", err)
		}
		candidate.interrupt(t)
		if err := c.Do(ctx, "leader", "ours", func(context.Context, *locker.Lock) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}
