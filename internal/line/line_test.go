package line

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// waiter is in line, and nothing else.
type waiter struct{ place Place }

// newLines returns lines in which no front is ever over.
func newLines() lines {
	return lines{New(func(w *waiter) *Place { return &w.place }, func(*waiter) bool { return false })}
}

type lines struct{ *Lines[*waiter] }

// join joins with a single context.
func (q lines) join(ctx context.Context, name string) (mine bool, err error) {
	never := context.Background()
	if mine, ended := q.Join(name, new(waiter), ctx, never, never); ended != nil {
		return mine, context.Cause(ended)
	}
	return true, nil
}

// tryOf reports whether a waiter is granted the name without waiting.
func (q lines) tryOf(name string) bool {
	ok, _ := q.TryJoin(name, new(waiter))
	return ok
}

func TestLine_ServesInOrderOfArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, ctx := newLines(), t.Context()
		if _, err := q.join(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		var served []int
		for i := range 10 {
			go func() {
				if _, err := q.join(ctx, "a"); err != nil {
					t.Error(err)
				}
				served = append(served, i)
				q.Leave("a", nil)
			}()
			synctest.Wait()
		}
		if len(served) > 0 || q.Waiting("a") != 10 {
			t.Fatalf("served %v, waiting %d", served, q.Waiting("a"))
		}
		q.Leave("a", nil)
		synctest.Wait()
		if !slices.Equal(served, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
			t.Errorf("served %v", served)
		}
		if len(q.byName) > 0 {
			t.Error("an empty line is kept")
		}
	})
}

func TestLine_SkipsWhoLeavesItWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, tired := newLines(), errors.New("tired")
		if _, err := q.join(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		results, cancels := make([]error, 3), make([]context.CancelCauseFunc, 3)
		for i := range results {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancels[i], results[i] = cancel, errors.New("still waiting")
			go func() { _, results[i] = q.join(ctx, "a") }()
			synctest.Wait()
		}
		cancels[1](tired)
		synctest.Wait()
		if !errors.Is(results[1], tired) || q.Waiting("a") != 2 {
			t.Fatalf("%v, waiting %d", results[1], q.Waiting("a"))
		}
		for _, i := range []int{0, 2} {
			if results[i] == nil {
				t.Errorf("%d was served too early", i)
			}
			q.Leave("a", nil)
			synctest.Wait()
			if results[i] != nil {
				t.Errorf("%d was not served: %v", i, results[i])
			}
		}
		q.Leave("a", nil)
		if !q.tryOf("a") {
			t.Error("the line is not free in the end")
		}
		cancels[0](nil)
		cancels[2](nil)
	})
}

func TestLine_LosesNoGrantThatComesWithTheEndOfAContext(t *testing.T) {
	t.Parallel()
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			q := newLines()
			if _, err := q.join(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if mine, _ := q.join(ctx, "a"); mine {
					q.Leave("a", nil)
				}
			}()
			synctest.Wait()
			cancel() // it is about to leave when it is granted
			q.Leave("a", nil)
			synctest.Wait()
			if !q.tryOf("a") {
				t.Fatal("the grant was lost: nobody has it, and nobody can get it")
			}
		})
	}
}

func TestLine_IsNotJumpedByTrying(t *testing.T) {
	t.Parallel()
	q := newLines()
	if !q.tryOf("a") || q.tryOf("a") {
		t.Error("want one of two granted")
	}
	if !q.tryOf("b") {
		t.Error("a line of another name is taken")
	}
	q.Leave("a", nil)
	if !q.tryOf("a") {
		t.Error("it is still taken")
	}
}

func TestLine_ReportsWhenItMovesToThoseWhoTryWhileTheFrontIsOver(t *testing.T) {
	t.Parallel()
	over := false
	q := lines{New(func(w *waiter) *Place { return &w.place }, func(*waiter) bool { return over })}
	if !q.tryOf("a") {
		t.Fatal("an empty line is taken")
	}
	if ok, moved := q.TryJoin("a", new(waiter)); ok || moved != nil {
		t.Error("there is something to wait for, though the front is not over")
	}
	over = true
	ok, moved := q.TryJoin("a", new(waiter))
	if ok || moved == nil {
		t.Fatal("there is nothing to wait for, though the front is over")
	}
	q.Leave("a", nil)
	<-moved
	if !q.tryOf("a") {
		t.Error("it is still taken")
	}
}

func TestLine_GrantsOnceToTheOneCalled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, next, never := newLines(), new(waiter), context.Background()
		if !q.tryOf("a") {
			t.Fatal("an empty line is taken")
		}
		go q.Join("a", next, never, never, never)
		synctest.Wait()
		if got := q.Call("a"); got != next || q.Call("a") != nil {
			t.Error("Call did not return the waiter in line once")
		}
		q.Leave("a", next)
		q.Leave("a", next) // which has been granted already
		<-next.place.Ready()
		if q.tryOf("a") {
			t.Error("two are granted")
		}
		q.Leave("a", nil)
	})
}

func TestLine_KeepsItsPlaceForAReplacement(t *testing.T) {
	t.Parallel()
	q, second := newLines(), new(waiter)
	if !q.tryOf("a") {
		t.Fatal("an empty line is taken")
	}
	q.Replace("a", second)
	if q.tryOf("a") {
		t.Error("the place was lost")
	}
	q.Leave("a", nil)
	if len(q.byName) != 0 {
		t.Error("an empty line is kept")
	}
}
