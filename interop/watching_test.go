package interop

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

// What any user who watches locks relies on.

// states reads a watch in a goroutine of its own, until the test ends.
type states struct {
	next chan locker.State
	last int64 // revision
}

// follow watches name, or all names that begin with it.
func follow(t *testing.T, c *locker.Client, name string, all bool) *states {
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

// sees reads the next state, which must be that of a lock, or that name is free if l is nil.
func (s *states) sees(t *testing.T, name string, l *locker.Lock) {
	t.Helper()
	state := receive(t, s.next)
	want := locker.State{Holder: locker.Holder{Name: name}, Revision: state.Revision}
	if l != nil {
		want.Held, want.Holder.Value, want.Holder.Token, want.Holder.Lease = true, l.Value(), l.Token(), state.Lease
	}
	if state != want || state.Revision < s.last {
		t.Errorf("%+v after revision %d, want %+v", state, s.last, want)
	}
	s.last = state.Revision
}

func TestWatch_SeesEachChangeInOrder(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		c, other := b.client(t), b.client(t)
		one := follow(t, b.client(t), "a", false)
		one.sees(t, "a", nil)
		l := lock(t, c, "a", "first")
		one.sees(t, "a", l)
		if err := l.SetValue(within(t), "second"); err != nil {
			t.Fatal(err)
		}
		one.sees(t, "a", l)
		waiter := lockAsync(within(t), other, "a", "third")
		b.queued(t, "a", 2) // which changes nothing for those who watch
		unlock(t, l)
		l = served(t, waiter)
		one.sees(t, "a", l)
		b.remove(t, l)
		one.sees(t, "a", nil)
	})
}

func TestWatchPrefix_SeesEachChangeOfAllNames(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		c := b.client(t)
		before, outside := lock(t, c, "set/before", "1"), lock(t, c, "other", "")
		all := follow(t, b.client(t), "set/", true)
		all.sees(t, "set/before", before)
		unlock(t, outside)
		after := lock(t, c, "set/after", "2")
		all.sees(t, "set/after", after)
		unlock(t, before)
		all.sees(t, "set/before", nil)
		unlock(t, after)
		all.sees(t, "set/after", nil)
	})
}

func TestCache_KeepsUpAndKnowsItsAge(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		ctx, c := within(t), b.client(t)
		first := lock(t, c, "a", "1")
		cache, err := b.client(t).NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		second := lock(t, c, "b", "2")
		eventually(t, "the cache has both", func() bool { return len(cache.List()) == 2 })
		holders, err := c.List(ctx, "")
		if err != nil || !slices.Equal(cache.List(), holders) {
			t.Errorf("cached %+v, listed %+v, %v", cache.List(), holders, err)
		}
		if holder, ok := cache.Get("b"); !ok || holder.Token != second.Token() || cache.Revision() < second.Token() {
			t.Errorf("%+v, %v at %d", holder, ok, cache.Revision())
		}
		unlock(t, first)
		eventually(t, "the cache sees the release", func() bool { _, ok := cache.Get("a"); return !ok })
		// The feed proves it current again and again, though nothing changes.
		for range 3 {
			now := time.Now()
			eventually(t, "the cache is known to be current", func() bool { return cache.Age() < time.Since(now) })
		}
	})
}
