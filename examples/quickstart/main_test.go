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

const patience = 2 * time.Minute

// chapters are words of the lines, in the order in which they have to come.
var chapters = []string{
	"alpha holds the 1st hold",
	"observer Get: 192.0.2.1",
	"observer Watch: 192.0.2.1",
	"beta waits",
	"alpha has unlocked",
	"beta holds after alpha began to unlock the 2nd hold",
	"observer Watch: 192.0.2.2",
	"alpha waits again",
	"network beta is cut off from etcd",
	"beta knows that it has lost the lock (expired)",
	"alpha holds after beta knew the 3rd hold",
	"observer Watch: 192.0.2.1",
	"network beta is back",
	"beta late Commit is refused",
	"beta etcd itself checks the guard",
	"alpha token is the largest",
	"alpha has unlocked",
	"observer nobody is www.example.com now",
	"etcd all was as promised",
}

func TestTheStoryIsToldInOrder(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(t.Context(), &out, nil); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")[1:] // the first is about where etcd is
	if len(lines) != len(chapters) {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), len(chapters), &out)
	}
	for i, chapter := range chapters {
		for word := range strings.FieldsSeq(chapter) {
			if !strings.Contains(lines[i], word) {
				t.Errorf("line %q has no %q", lines[i], word)
			}
		}
	}
}

// audience calls react after each line.
type audience struct {
	lines int
	react func(line int, text string)
}

func (a *audience) Write(text []byte) (int, error) {
	a.lines++
	a.react(a.lines, string(text))
	return len(text), nil
}

func TestItEndsWhenItIsInterruptedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	etcd := server.Client(t)
	enough := errors.New("enough")
	var wg sync.WaitGroup
	for moment := range len(chapters) + 1 {
		wg.Go(func() {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			out := &audience{react: func(line int, _ string) {
				if line == moment {
					cancel(enough)
				}
			}}
			if moment == 0 {
				cancel(enough)
			}
			began := time.Now()
			err := run(ctx, out, server.Endpoints())
			// At the last lines it may have nothing left to be interrupted in.
			if err == nil && moment < len(chapters)-1 || err != nil && !errors.Is(err, enough) {
				t.Errorf("interrupted at line %d, it ended with %v", moment, err)
			}
			if took := time.Since(began); took > patience {
				t.Errorf("interrupted at line %d, it took %v", moment, took)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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

func TestItFailsWhenAPromiseIsNotKept(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	etcd := server.Client(t)
	out := &audience{react: func(_ int, text string) {
		if strings.Contains(text, "the 1st hold") {
			if _, err := etcd.Delete(t.Context(), "locker-quickstart-", clientv3.WithPrefix()); err != nil {
				t.Error(err)
			}
		}
	}}
	if err := run(t.Context(), out, server.Endpoints()); err == nil {
		t.Error("it did not notice that the lock was taken away")
	}
}

func TestItSaysWhyThereIsNoEtcd(t *testing.T) {
	t.Parallel()
	for endpoint, want := range map[string]string{
		"127.0.0.1:1": "refused",
		"nonsense":    "nonsense",
	} {
		out := &audience{react: func(_ int, text string) { t.Errorf("it said %s", text) }}
		err := run(t.Context(), out, []string{endpoint})
		if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, locker.ErrNotFound) {
			t.Errorf("with %s it ended with %v", endpoint, err)
		}
	}
}
