package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestMain(m *testing.M) {
	ttl = 5 * time.Second
	goleak.VerifyTestMain(m)
}

const testTimeout = 2 * time.Minute

// expected has words of each line of the output, in order.
var expected = []string{
	"alpha holds (1st hold)",
	"observer Get: 192.0.2.1",
	"observer Watch: 192.0.2.1",
	"beta waits",
	"alpha unlocked",
	"beta holds after alpha called Unlock (2nd hold)",
	"observer Watch: 192.0.2.2",
	"alpha waits again",
	"network beta is disconnected from etcd",
	"beta learns that it has lost the lock (expired)",
	"alpha holds after beta learned of its loss (3rd hold)",
	"observer Watch: 192.0.2.1",
	"network beta is connected again",
	"beta late Commit is refused",
	"beta etcd itself checks the guard",
	"alpha token is the largest",
	"alpha unlocked",
	"observer www.example.com is no longer held",
	"etcd every guarantee held",
}

func TestRun_PrintsItsStepsInOrder(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(t.Context(), &out, nil); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[1:] // the first says where etcd runs
	if len(lines) != len(expected) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(expected), &out)
	}
	for i, words := range expected {
		for word := range strings.FieldsSeq(words) {
			if !strings.Contains(lines[i], word) {
				t.Errorf("line %q does not contain %q", lines[i], word)
			}
		}
	}
}

// lineWriter calls onLine after each line.
type lineWriter struct {
	lines  int
	onLine func(line int, text string)
}

func (w *lineWriter) Write(text []byte) (int, error) {
	w.lines++
	w.onLine(w.lines, string(text))
	return len(text), nil
}

func TestRun_EndsAndLeavesNothingBehindWhenInterrupted(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	etcd := server.Client(t)
	interrupted := errors.New("interrupted by the test")
	var wg sync.WaitGroup
	for last := range len(expected) + 1 {
		wg.Go(func() {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			out := &lineWriter{onLine: func(line int, _ string) {
				if line == last {
					cancel(interrupted)
				}
			}}
			if last == 0 {
				cancel(interrupted)
			}
			began := time.Now()
			err := run(ctx, out, server.Endpoints())
			// At the last lines there may be nothing left to interrupt.
			if err == nil && last < len(expected)-1 || err != nil && !errors.Is(err, interrupted) {
				t.Errorf("interrupted at line %d, run returned %v", last, err)
			}
			if took := time.Since(began); took > testTimeout {
				t.Errorf("interrupted at line %d, run took %v", last, took)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	keys, err := etcd.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range keys.Kvs {
		t.Errorf("left in etcd: %s", kv.Key)
	}
	leases, err := etcd.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(leases.Leases) > 0 {
		t.Errorf("left in etcd: %d leases", len(leases.Leases))
	}
}

func TestRun_FailsWhenAGuaranteeDoesNotHold(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	etcd := server.Client(t)
	out := &lineWriter{onLine: func(_ int, text string) {
		if strings.Contains(text, "(1st hold)") {
			if _, err := etcd.Delete(t.Context(), "locker-quickstart-", clientv3.WithPrefix()); err != nil {
				t.Error(err)
			}
		}
	}}
	if err := run(t.Context(), out, server.Endpoints()); err == nil {
		t.Error("run did not notice that the lock was deleted")
	}
}

func TestRun_ReportsWhyEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		"127.0.0.1:1": "refused",
		"nonsense":    "nonsense",
	} {
		out := &lineWriter{onLine: func(_ int, text string) { t.Errorf("run printed %s", text) }}
		err := run(t.Context(), out, []string{endpoint})
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, locker.ErrNotFound) {
			t.Errorf("with %s, run returned %v", endpoint, err)
		}
	}
}
