package interop

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

// states receives the states of a watch until the test ends.
type states struct {
	next chan locker.State
	last int64 // revision
}

// startWatch watches name, or with all the names that begin with it.
func startWatch(t *testing.T, c *locker.Client, name string, all bool) *states {
	ctx, cancel := context.WithCancel(t.Context())
	s, done := &states{next: make(chan locker.State, 100)}, make(chan error, 1)
	watch := c.Watch
	if all {
		watch = c.WatchPrefix
	}
	go func() {
		var last error
		for state, err := range watch(ctx, name) {
			if last = err; err == nil {
				s.next <- state
			}
		}
		done <- last
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the watch ended with %v", err)
		}
	})
	return s
}

// expect reads the next state and checks that l holds name, or that name is free if l is
// nil.
func (s *states) expect(t *testing.T, name string, l *locker.Lock) {
	t.Helper()
	state := receive(t, s.next)
	expected := locker.State{Holder: locker.Holder{Name: name}, Revision: state.Revision}
	if l != nil {
		expected = locker.State{Holder: state.Holder, Held: true, Holders: 1, Revision: state.Revision}
		expected.Value, expected.Token, expected.Limit = l.Value(), l.Token(), 1
	}
	if state != expected || state.Revision < s.last {
		t.Errorf("got state %+v after revision %d, want %+v", state, s.last, expected)
	}
	s.last = state.Revision
}

func TestWatch_SeesEachChangeInOrder(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		c, other := b.client(t), b.client(t)
		one := startWatch(t, b.client(t), "a", false)
		one.expect(t, "a", nil)
		l := lock(t, c, "a", "first")
		one.expect(t, "a", l)
		if err := l.SetValue(testContext(t), "second"); err != nil {
			t.Fatal(err)
		}
		one.expect(t, "a", l)
		waiter := lockAsync(testContext(t), other, "a", "third")
		b.awaitEntries(t, "a", 2) // which no watch reports
		unlock(t, l)
		l = awaitLock(t, waiter)
		one.expect(t, "a", l)
		b.deleteEntry(t, l)
		one.expect(t, "a", nil)
	})
}

func TestWatchPrefix_SeesEachChangeOfAllNames(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		c := b.client(t)
		before, outside := lock(t, c, "set/before", "1"), lock(t, c, "other", "")
		all := startWatch(t, b.client(t), "set/", true)
		all.expect(t, "set/before", before)
		unlock(t, outside)
		after := lock(t, c, "set/after", "2")
		all.expect(t, "set/after", after)
		unlock(t, before)
		all.expect(t, "set/before", nil)
		unlock(t, after)
		all.expect(t, "set/after", nil)
	})
}

func TestCache_KeepsUpAndKnowsItsAge(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := testContext(t), b.client(t)
		first := lock(t, c, "a", "1")
		cache, err := b.client(t).NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		second := lock(t, c, "b", "2")
		eventually(t, "the cache has both", func() bool { return len(cache.List()) == 2 })
		holders, err := c.List(ctx, "")
		if err != nil || !slices.Equal(cache.List(), holders) {
			t.Errorf("the cache has %+v, List returned %+v, %v", cache.List(), holders, err)
		}
		if holder, ok := cache.Get("b"); !ok || holder.Token != second.Token() || cache.Revision() < second.Token() {
			t.Errorf("the cache has %+v, %v at revision %d", holder, ok, cache.Revision())
		}
		unlock(t, first)
		eventually(t, "the cache shows the release", func() bool { _, ok := cache.Get("a"); return !ok })
		// Its age is reset again and again although nothing changes.
		for range 3 {
			now := time.Now()
			eventually(t, "the cache is known to be current", func() bool { return cache.Age() < time.Since(now) })
		}
	})
}
