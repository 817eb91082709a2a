package locker_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// What Compat.Watch and Compat.Get have kept of the original.

func TestCompatWatchTellsTheFirstValueAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	lock(t, b.client(t), "a", "v")
	follow(c, "a", 0).tells(t, "v")
	follow(c, "nobody", 0).tells(t, "")
}

func TestCompatWatchTellsChangesOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	holder := b.client(t)
	w := follow(b.compat(t), "a", 9)
	w.tells(t, "")
	for _, value := range []string{"v", "w"} {
		l := lock(t, holder, "a", value)
		w.tells(t, value)
		setValue(t, l, value) // an event of etcd, but no change
		unlock(t, l)
		w.tells(t, "")
	}
	unlock(t, lock(t, holder, "a", "")) // cannot be told from nobody
	lock(t, holder, "a", "x")
	w.tells(t, "x")
	w.ends(t)
}

func TestCompatWatchQuitsByASendAndByAClose(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	for _, quit := range []func(testing.TB, chan bool){bySend, byClose} {
		read := follow(c, "a", 0)
		read.tells(t, "")
		unread := follow(c, "a", 0)
		for _, w := range []call[string]{read, unread} {
			quit(t, w.quit)
			w.ended(t)
		}
	}
}

func TestCompatWatchQuitsWhileEtcdIsGone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := follow(b.compat(t), "a", 1)
	b.server.Stop(t, 0)
	if len(w.told) == 1 {
		w.tells(t, "")
	}
	unread := follow(b.compat(t), "a", 1)
	w.ends(t)
	unread.ends(t)
}

func TestCompatWatchTellsALateReaderTheNewest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, holder := b.compat(t), b.client(t)
	w, brisk := follow(c, "a", 0), follow(c, "a", 9)
	brisk.tells(t, "")
	for _, value := range []string{"1", "2", "3"} {
		l := lock(t, holder, "a", value)
		brisk.tells(t, value)
		if value != "3" {
			unlock(t, l)
			brisk.tells(t, "")
		}
	}
	// It may be about to hear of the newest, but does not stay behind.
	for value := ""; value != "3"; value = receive(t, w.told) {
	}
	w.ends(t)
}

func TestCompatWatchReturnsAnErrorWhenEtcdIsGoneForTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	w := follow(c, "a", 9)
	w.tells(t, "")
	proxy.Cut()
	if err := receive(t, w.result); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Watch returned %v", err)
	}
	w.silent(t)
}

func TestCompatWatchSurvivesAnOutageShorterThanTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, unhurried)
	w := follow(c, "a", 9)
	w.tells(t, "")
	proxy.Cut()
	outlast(t, b, brief)
	lock(t, b.client(t), "a", "v")
	w.silent(t)
	proxy.Heal()
	w.tells(t, "v")
	w.ends(t)
}

func TestCompatGetReturnsTheValueOrLockNotFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	_, err := c.Get("a")
	if _, ok := err.(locker.LockNotFound); !ok {
		t.Errorf("%T is not a LockNotFound", err)
	}
	if err == nil || err.Error() != "Lock not found: a" {
		t.Errorf("the text is %q", err)
	}
	want(t, err, locker.ErrNotFound)
	if errors.Is(err, locker.ErrLocked) {
		t.Error("it is ErrLocked as well")
	}
	lock(t, b.client(t), "a", "v")
	if value, err := c.Get("a"); value != "v" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
}

func TestCompatGetDoesNotTakeEtcdsAbsenceForThatOfALock(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	c := newCompat(t, newClient(t, server.Client(t), locker.WithTTL(brief)))
	server.Stop(t, 0)
	_, err := c.Get("a")
	if err == nil || errors.Is(err, locker.ErrNotFound) {
		t.Errorf("%v, want an error of etcd", err)
	}
	wantWrappedOnce(t, err)
}

func TestCompatLockDeniedHasItsOldText(t *testing.T) {
	t.Parallel()
	var err error = locker.LockDenied{}
	if err.Error() != "Lock attempt was denied: " {
		t.Errorf("the text is %q", err)
	}
	want(t, err, locker.ErrLocked)
	if errors.Is(err, locker.ErrNotFound) {
		t.Error("it is ErrNotFound as well")
	}
}
