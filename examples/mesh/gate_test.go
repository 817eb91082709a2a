package main

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	errOne = errors.New("one reason")
	errTwo = errors.New("another reason")
)

func TestAGateLetsThroughWhileItIsOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(errOne)
		through := make(chan context.Context)
		go func() {
			ctx, _, err := g.wait(t.Context())
			if err != nil {
				t.Error(err)
			}
			through <- ctx
		}()
		synctest.Wait()
		g.set(errTwo)
		synctest.Wait()
		select {
		case <-through:
			t.Fatal("a closed gate let somebody through")
		default:
		}
		if g.why() != errTwo {
			t.Errorf("closed because of %v", g.why())
		}
		g.set(nil)
		ctx := <-through
		if ctx.Err() != nil || g.why() != nil {
			t.Errorf("open, but %v, %v", ctx.Err(), g.why())
		}
		g.set(errOne)
		<-ctx.Done()
		if context.Cause(ctx) != errOne {
			t.Errorf("cause %v", context.Cause(ctx))
		}
	})
}

func TestWaitingAtAGateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for about, g := range map[string]*gate{"open": newGate(errOne), "closed": newGate(errOne)} {
		if about == "open" {
			g.set(nil)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errTwo)
		if _, _, err := g.wait(ctx); err != errTwo {
			t.Errorf("%s: %v", about, err)
		}
	}
}

func TestHealthIsOpenWhileCheckAndSwitchAreWell(t *testing.T) {
	t.Parallel()
	h := newHealth()
	want := func(about string, reason error) {
		t.Helper()
		if got := h.gate.why(); got != reason {
			t.Errorf("%s: %v, want %v", about, got, reason)
		}
	}
	want("at first", errNotChecked)
	h.turn(true)
	want("switched on before a check", errNotChecked)
	h.found(nil)
	want("checked", nil)
	h.turn(false)
	want("switched off", errSwitchedOff)
	h.found(errOne)
	want("switched off and ill", errSwitchedOff)
	h.turn(true)
	want("ill", errOne)
	h.found(nil)
	want("well again", nil)
}

func TestACheckIsRepeatedAndBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		h, checks := newHealth(), atomic.Int32{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.watch(ctx, func(ctx context.Context) error {
				if checks.Add(1) < 3 {
					return nil
				}
				<-ctx.Done() // hangs
				return ctx.Err()
			}, time.Second, 4*time.Second)
		}()
		time.Sleep(1500 * time.Millisecond) // of the bubble
		synctest.Wait()
		if n := checks.Load(); n != 2 || h.gate.why() != nil {
			t.Errorf("after 1.5 s: %d checks, %v", n, h.gate.why())
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if h.gate.why() != nil {
			t.Errorf("after 3.5 s of the third check: %v", h.gate.why())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if err := h.gate.why(); err == nil || err.Error() != "the check took longer than 4s" {
			t.Errorf("after the third check: %v", err)
		}
		cancel()
		<-done
	})
}
