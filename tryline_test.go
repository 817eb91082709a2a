package locker_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2"
)

// holdBack is an etcd that withholds what concerns an entry of "a", while it does, and
// signals the first of that.
type holdBack struct {
	bundle
	on      atomic.Bool
	held    chan struct{}
	proceed chan struct{}
}

func newHoldBack(t *testing.T) (*holdBack, *locker.Client) {
	h := &holdBack{bundle: setup(t), held: make(chan struct{}, 1000), proceed: make(chan struct{})}
	etcd := h.server.ClientWith(t, func(ctx context.Context, method string, request any, call func() error) error {
		if txn, ok := request.(*pb.TxnRequest); ok && h.on.Load() && strings.Contains(txn.String(), locker.DefaultPrefix+"a/") {
			h.held <- struct{}{}
			select {
			case <-h.proceed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return call()
	})
	c := newClient(t, etcd, locker.WithTTL(time.Minute))
	unlock(t, lock(t, c, "b", "v")) // opens the session
	return h, c
}

// tryAsync tries to lock "a" in another goroutine.
func tryAsync(ctx context.Context, c *locker.Client) <-chan outcome {
	result := make(chan outcome, 1)
	go func() {
		l, err := c.TryLock(ctx, "a", "try")
		result <- outcome{l, err}
	}()
	return result
}

func TestTryLock_WaitsForTheRemovalOfWhatIsOver(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	over := map[string]func(t *testing.T, h *holdBack, c *locker.Client){
		"a Lock that was given up": func(t *testing.T, h *holdBack, c *locker.Client) {
			h.on.Store(true)
			ctx, cancel := context.WithCancelCause(within(t))
			result := lockAsync(ctx, c, "a", "v")
			receive(t, h.held)
			cancel(enough)
			want(t, receive(t, result).err, enough)
		},
		"an Unlock that was given up": func(t *testing.T, h *holdBack, c *locker.Client) {
			l := lock(t, c, "a", "v")
			h.on.Store(true)
			ctx, cancel := context.WithCancelCause(within(t))
			cancel(enough)
			want(t, l.Unlock(ctx), enough)
		},
	}
	for what, end := range over {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			h, c := newHoldBack(t)
			end(t, h, c)
			ctx, cancel := context.WithTimeoutCause(within(t), 200*time.Millisecond, enough)
			defer cancel()
			_, err := c.TryLock(ctx, "a", "try")
			want(t, err, enough)
			tried := tryAsync(within(t), c)
			select {
			case got := <-tried:
				t.Errorf("it did not wait: %v", got.err)
			case <-time.After(200 * time.Millisecond):
			}
			close(h.proceed)
			got := receive(t, tried)
			if got.err != nil {
				t.Fatal(got.err)
			}
			h.queued(t, "a", 1)
			unlock(t, got.lock)
		})
	}
}

func TestTryLock_DoesNotWaitForThoseWhoAreNext(t *testing.T) {
	t.Parallel()
	h, c := newHoldBack(t)
	l := lock(t, c, "a", "v")
	h.on.Store(true)
	ended, cancel := context.WithCancel(within(t))
	cancel()
	waiting := tryAsync(within(t), c)
	want(t, receive(t, waiting).err, locker.ErrLocked) // it is held
	want(t, l.Unlock(ended), context.Canceled)
	before := tryAsync(within(t), c) // waits for the removal
	next := lockAsync(within(t), c, "a", "next")
	eventually(t, "the next is in line", func() bool { return c.Waiting("a") == 1 })
	want(t, receive(t, tryAsync(within(t), c)).err, locker.ErrLocked)
	close(h.proceed)
	if got := receive(t, next); got.err != nil {
		t.Fatal(got.err)
	}
	if got := receive(t, before); !errors.Is(got.err, locker.ErrLocked) {
		t.Errorf("it jumped the line, or waited for a holder: %v", got.err)
	}
}
