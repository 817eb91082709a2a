package backoff

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPause_DoublesUpToTheLongest(t *testing.T) {
	t.Parallel()
	var p Pause
	for want := Shortest; want < 4*longest; want *= 2 {
		bound := min(want, longest)
		if got := p.Next(); got < bound/2 || got >= bound*3/2 {
			t.Errorf("paused %v, want %v, spread by half of it", got, bound)
		}
	}
}

func TestPause_IsSpreadAtRandom(t *testing.T) {
	t.Parallel()
	different := make(map[time.Duration]bool)
	for range 100 {
		var p Pause
		different[p.Next()] = true
	}
	if len(different) < 50 {
		t.Errorf("100 first pauses have only %d lengths", len(different))
	}
}

func TestPause_WaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p Pause
		began := time.Now()
		if err := p.Wait(t.Context()); err != nil || time.Since(began) < Shortest/2 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		if err := Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
