package locker

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
)

// Waiting returns how many goroutines of the client stand in line behind the one that deals with etcd.
func (c *Client) Waiting(name string) int { return c.lines.waiting(name) }

func (q *lines) waiting(name string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w := q.byName[name]; w.behind != nil {
		return w.behind.Len()
	}
	return 0
}

func newLines() *lines {
	q := new(lines)
	q.init()
	return q
}

// of returns a lock that has a place in line, and nothing else.
func of(name string) *Lock { return &Lock{name: name, ctx: context.Background()} }

// joinLine joins with one context.
func (q *lines) joinLine(ctx context.Context, l *Lock) (mine bool, err error) {
	never := context.Background()
	if mine, ended := q.join(l, ctx, never, never); ended != nil {
		return mine, context.Cause(ended)
	}
	return true, nil
}

// tryOf reports whether a lock gets the turn without waiting.
func (q *lines) tryOf(name string) bool {
	ok, _ := q.tryJoin(of(name))
	return ok
}

func TestALineServesInOrderOfArrival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, ctx := newLines(), t.Context()
		if _, err := q.joinLine(ctx, of("a")); err != nil {
			t.Fatal(err)
		}
		var served []int
		for i := range 10 {
			go func() {
				if _, err := q.joinLine(ctx, of("a")); err != nil {
					t.Error(err)
				}
				served = append(served, i)
				q.leave("a", nil)
			}()
			synctest.Wait()
		}
		if len(served) > 0 || q.waiting("a") != 10 {
			t.Fatalf("served %v, waiting %d", served, q.waiting("a"))
		}
		q.leave("a", nil)
		synctest.Wait()
		if !slices.Equal(served, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) {
			t.Errorf("served %v", served)
		}
		if len(q.byName) > 0 {
			t.Error("an empty line is kept")
		}
	})
}

func TestWhoLeavesALineWaitingIsSkipped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, tired := newLines(), errors.New("tired")
		if _, err := q.joinLine(t.Context(), of("a")); err != nil {
			t.Fatal(err)
		}
		results, cancels := make([]error, 3), make([]context.CancelCauseFunc, 3)
		for i := range results {
			ctx, cancel := context.WithCancelCause(t.Context())
			cancels[i], results[i] = cancel, errors.New("still waiting")
			go func() { _, results[i] = q.joinLine(ctx, of("a")) }()
			synctest.Wait()
		}
		cancels[1](tired)
		synctest.Wait()
		if !errors.Is(results[1], tired) || q.waiting("a") != 2 {
			t.Fatalf("%v, waiting %d", results[1], q.waiting("a"))
		}
		for _, i := range []int{0, 2} {
			if results[i] == nil {
				t.Errorf("%d was served before its turn", i)
			}
			q.leave("a", nil)
			synctest.Wait()
			if results[i] != nil {
				t.Errorf("%d was not served: %v", i, results[i])
			}
		}
		q.leave("a", nil)
		if !q.tryOf("a") {
			t.Error("the line is not free in the end")
		}
		cancels[0](nil)
		cancels[2](nil)
	})
}

func TestATurnThatComesWithTheEndOfTheContextIsNotLost(t *testing.T) {
	t.Parallel()
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			q := newLines()
			if _, err := q.joinLine(t.Context(), of("a")); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if mine, _ := q.joinLine(ctx, of("a")); mine {
					q.leave("a", nil)
				}
			}()
			synctest.Wait()
			cancel() // it is on its way out when its turn comes
			q.leave("a", nil)
			synctest.Wait()
			if !q.tryOf("a") {
				t.Fatal("nobody has the turn, and nobody can take it")
			}
		})
	}
}

func TestTryingDoesNotJumpTheLine(t *testing.T) {
	t.Parallel()
	q := newLines()
	if !q.tryOf("a") || q.tryOf("a") {
		t.Error("not one of two")
	}
	if !q.tryOf("b") {
		t.Error("another name is in the way")
	}
	q.leave("a", nil)
	if !q.tryOf("a") {
		t.Error("it is still taken")
	}
}
