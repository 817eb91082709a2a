package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestWorker_WorksBeforeItUnlocks(t *testing.T) {
	t.Parallel()
	m := make(memoryMutex, 1)
	s := working(service{join: func(context.Context, *arena) (client, error) {
		return func(string) mutex { return m }, nil
	}}, 10*time.Millisecond)
	c, err := s.join(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	w := c("name")
	if err := w.Lock(testContext(t)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := w.Unlock(testContext(t)); err != nil || time.Since(began) < 10*time.Millisecond || len(m) != 0 {
		t.Errorf("unlocked after %v: %v", time.Since(began), err)
	}
}

func TestWorker_ThatCannotJoinIsAnError(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	s := working(service{join: func(context.Context, *arena) (client, error) { return nil, broken }}, time.Minute)
	if _, err := s.join(testContext(t), nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestWorkAlone_IsAsManyHoldsAsTheLimitAllows(t *testing.T) {
	t.Parallel()
	measure, err := withoutLocks.open(testContext(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := measure(testContext(t)); err != nil || f[rate] != 1600 {
		t.Errorf("%v, %v", f, err)
	}
}
