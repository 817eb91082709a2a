package line

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"
	"testing/synctest"
)

// waiter is in line, and nothing else.
type waiter struct {
	places []Place[*waiter]
	wait   Wait
	over   bool
}

// want returns a waiter that wants the names, as one of the kind.
func want(kind int16, names ...string) *waiter {
	w := new(waiter)
	for _, name := range names {
		w.places = append(w.places, Place[*waiter]{Name: name, Kind: kind})
	}
	return w
}

// only is the kind of those that are in front alone.
const only = 1

// holds is the rule of these tests: one is in front if nobody of the other kind, 0 or not, is ahead and, unless its own
// is 0, fewer are ahead than the smallest kind among its own and theirs.
func holds(kind int16, ahead []int16) bool {
	smallest := kind
	for _, other := range ahead {
		if (other == 0) != (kind == 0) {
			return false
		}
		smallest = min(smallest, other)
	}
	return kind == 0 || len(ahead) < int(smallest)
}

// newLines returns lines with the rule of these tests.
func newLines() lines {
	return lines{New(Config[*waiter]{
		Places: func(w *waiter) iter.Seq[*Place[*waiter]] {
			return func(yield func(*Place[*waiter]) bool) {
				for i := range w.places {
					if !yield(&w.places[i]) {
						return
					}
				}
			}
		},
		Wait:   func(w *waiter) *Wait { return &w.wait },
		Over:   func(w *waiter) bool { return w.over },
		Admits: func(size int, least, kind int16) bool { return holds(kind, slices.Repeat([]int16{least}, size)) },
	})}
}

type lines struct{ *Lines[*waiter] }

var never = context.Background()

// join joins with a single context.
func (q lines) join(ctx context.Context, w *waiter) (mine bool, err error) {
	if mine, ended := q.Join(w, ctx, never, never); ended != nil {
		return mine, context.Cause(ended)
	}
	return true, nil
}

// tryOf reports whether a waiter is granted the name, for itself alone, without waiting.
func (q lines) tryOf(name string) bool {
	ok, _, _ := q.TryJoin(want(only, name))
	return ok
}

// leave has the first of those in front leave.
func (q lines) leave(name string) { q.Leave(q.first(name)) }

func (q lines) first(name string) *waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.byName[name].first.of
}

func TestLine_ServesInOrderOfArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, ctx := newLines(), t.Context()
		if _, err := q.join(ctx, want(only, "a")); err != nil {
			t.Fatal(err)
		}
		var served []int
		for i := range 10 {
			go func() {
				w := want(only, "a")
				if _, err := q.join(ctx, w); err != nil {
					t.Error(err)
				}
				served = append(served, i)
				q.Leave(w)
			}()
			synctest.Wait()
		}
		if len(served) > 0 || q.Waiting("a") != 10 {
			t.Fatalf("served %v, waiting %d", served, q.Waiting("a"))
		}
		q.leave("a")
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
		if _, err := q.join(t.Context(), want(only, "a")); err != nil {
			t.Fatal(err)
		}
		results, cancels := make([]error, 3), make([]context.CancelCauseFunc, 3)
		for i := range results {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancels[i], results[i] = cancel, errors.New("still waiting")
			go func() { _, results[i] = q.join(ctx, want(only, "a")) }()
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
			q.leave("a")
			synctest.Wait()
			if results[i] != nil {
				t.Errorf("%d was not served: %v", i, results[i])
			}
		}
		q.leave("a")
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
			if _, err := q.join(t.Context(), want(only, "a")); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				w := want(only, "a")
				if mine, _ := q.join(ctx, w); mine {
					q.Leave(w)
				}
			}()
			synctest.Wait()
			cancel() // it is about to leave when it is granted
			q.leave("a")
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
	q.leave("a")
	if !q.tryOf("a") {
		t.Error("it is still taken")
	}
}

func TestLine_ReportsWhenItMovesToThoseWhoTryWhileTheFrontIsOver(t *testing.T) {
	t.Parallel()
	q, first := newLines(), want(only, "a")
	if ok, _, _ := q.TryJoin(first); !ok {
		t.Fatal("an empty line is taken")
	}
	if ok, _, moved := q.TryJoin(want(only, "a")); ok || moved != nil {
		t.Error("there is something to wait for, though the front is not over")
	}
	first.over = true
	ok, _, moved := q.TryJoin(want(only, "a"))
	if ok || moved == nil {
		t.Fatal("there is nothing to wait for, though the front is over")
	}
	q.Leave(first)
	<-moved
	if !q.tryOf("a") {
		t.Error("it is still taken")
	}
}

func TestLine_GrantsOnceToTheOneCalled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, first, next := newLines(), want(only, "a"), want(only, "a")
		if ok, _, _ := q.TryJoin(first); !ok {
			t.Fatal("an empty line is taken")
		}
		go q.Join(next, never, never, never)
		synctest.Wait()
		if got := q.Call(first); got != next || q.Call(first) != nil {
			t.Error("Call did not return the waiter in line once")
		}
		q.Leave(first)
		q.Leave(first) // next has been granted already
		<-next.wait.Ready()
		if q.tryOf("a") {
			t.Error("two are granted")
		}
		q.Leave(next)
	})
}

func TestLine_KeepsItsPlaceForAReplacement(t *testing.T) {
	t.Parallel()
	q, first, second := newLines(), want(only, "a", "b"), want(only, "a", "b")
	if ok, _, _ := q.TryJoin(first); !ok {
		t.Fatal("an empty line is taken")
	}
	q.Replace(first, second)
	q.Leave(first) // which is not in the lines any more
	if q.tryOf("a") || q.tryOf("b") {
		t.Error("the place was lost")
	}
	q.Leave(second)
	if len(q.byName) != 0 {
		t.Error("an empty line is kept")
	}
}
