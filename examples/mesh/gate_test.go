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

func TestGate_LetsCallersThroughWhileItIsOpen(t *testing.T) {
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
			t.Fatal("wait returned while the gate was closed")
		default:
		}
		if g.err() != errTwo {
			t.Errorf("closed with reason %v", g.err())
		}
		g.set(nil)
		ctx := <-through
		if ctx.Err() != nil || g.err() != nil {
			t.Errorf("open, but got %v, %v", ctx.Err(), g.err())
		}
		g.set(errOne)
		<-ctx.Done()
		if context.Cause(ctx) != errOne {
			t.Errorf("cause %v", context.Cause(ctx))
		}
	})
}

func TestGate_WaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for when, g := range map[string]*gate{"open": newGate(errOne), "closed": newGate(errOne)} {
		if when == "open" {
			g.set(nil)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errTwo)
		if _, _, err := g.wait(ctx); err != errTwo {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func TestHealth_DependsOnTheCheckAndTheMark(t *testing.T) {
	t.Parallel()
	h := newHealth()
	want := func(when string, reason error) {
		t.Helper()
		if got := h.gate.err(); got != reason {
			t.Errorf("%s: %v, want %v", when, got, reason)
		}
	}
	want("initially", errNotChecked)
	h.setHealthy(true)
	want("marked healthy before a check", errNotChecked)
	h.setResult(nil)
	want("check passed", nil)
	h.setHealthy(false)
	want("marked unhealthy", errMarkedUnhealthy)
	h.setResult(errOne)
	want("marked unhealthy and check failed", errMarkedUnhealthy)
	h.setHealthy(true)
	want("check failed", errOne)
	h.setResult(nil)
	want("check passed again", nil)
}

func TestCheck_IsRepeatedAndTimesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		h, checks := newHealth(), atomic.Int32{}
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.runChecks(ctx, func(ctx context.Context) error {
				if checks.Add(1) < 3 {
					return nil
				}
				<-ctx.Done() // hangs
				return ctx.Err()
			}, time.Second, 4*time.Second)
		}()
		time.Sleep(1500 * time.Millisecond) // in the bubble's time
		synctest.Wait()
		if n := checks.Load(); n != 2 || h.gate.err() != nil {
			t.Errorf("after 1.5 s: %d checks, %v", n, h.gate.err())
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if h.gate.err() != nil {
			t.Errorf("after 3.5 s of the third check: %v", h.gate.err())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if err := h.gate.err(); err == nil || err.Error() != "health check timed out after 4s" {
			t.Errorf("after the third check: %v", err)
		}
		cancel()
		<-done
	})
}
