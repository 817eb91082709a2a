package line

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
)

// call is a waiter, and what became of its Join.
type call struct {
	*waiter
	cancel   context.CancelFunc
	returned bool
	mine     bool
	ended    context.Context
}

// joins has a waiter join, and returns when it is in front, or waits. It must be called in a bubble.
func (q lines) joins(t *testing.T, w *waiter) *call {
	ctx, cancel := context.WithCancel(t.Context())
	c := &call{waiter: w, cancel: cancel}
	go func() {
		c.mine, c.ended = q.Join(w, ctx, never, never)
		c.returned = true
	}()
	synctest.Wait()
	return c
}

// stands has waiters join one after the other, in a bubble.
func stands(t *testing.T, f func(t *testing.T, q lines, all []*call), waiters ...*waiter) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, all := newLines(), make([]*call, len(waiters))
		for i, w := range waiters {
			all[i] = q.joins(t, w)
		}
		f(t, q, all)
	})
}

// show checks where the waiters are: F, in front; w, waiting; -, in no line any more.
func show(t *testing.T, all []*call, want string) {
	t.Helper()
	synctest.Wait()
	got := ""
	for _, c := range all {
		switch {
		case c.places[0].of == nil:
			got += "-"
		case c.returned:
			got += "F"
		default:
			got += "w"
		}
	}
	if got != want {
		t.Errorf("they are at %s, want %s", got, want)
	}
}

func TestKinds_ReadersAreInFrontTogether(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "FFww")
		if n := q.Waiting("a"); n != 2 {
			t.Errorf("%d are waiting", n)
		}
		q.Leave(all[1].waiter)
		show(t, all, "F-ww") // the writer waits for all readers, and the reader behind it for the writer
		q.Leave(all[0].waiter)
		show(t, all, "--Fw")
		q.Leave(all[2].waiter)
		show(t, all, "---F")
	}, want(0, "a"), want(0, "a"), want(only, "a"), want(0, "a"))
}

func TestKinds_VeryManyInFrontJoinAndLeaveWithoutAWalkOverTheOthers(t *testing.T) {
	const n = 20_000
	for what, order := range map[string]func([]*waiter){
		"the first first": func([]*waiter) {},
		"the last first":  slices.Reverse[[]*waiter],
		"at random":       func(all []*waiter) { rand.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] }) },
	} {
		t.Run(what, func(t *testing.T) {
			stands(t, func(t *testing.T, q lines, all []*call) {
				calls := 0
				q.Admits = func(size int, least, kind int16) bool {
					calls++
					return size == 0 || kind == 0 && least == 0
				}
				readers := make([]*waiter, n)
				for i := range readers {
					readers[i] = want(0, "a")
					if mine, ended := q.Join(readers[i], never, never, never); !mine || ended != nil {
						t.Fatalf("number %d is not in front", i)
					}
				}
				q.Leave(all[0].waiter)
				writer := q.joins(t, want(only, "a"))
				order(readers)
				for _, w := range readers {
					if writer.returned {
						t.Fatal("the writer is in front beside a reader")
					}
					q.Leave(w)
				}
				show(t, []*call{writer}, "F")
				if calls > 2*n+10 {
					t.Errorf("%d of them took %d questions whether one may be in front", n, calls)
				}
			}, want(0, "a"))
		})
	}
}

func TestKinds_ALimitIsThatOfTheStrictest(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "FFwwww") // the third may have one beside it, not two
		q.Leave(all[0].waiter)
		show(t, all, "-FFwww") // the fourth may have two beside it, but the third may not
		q.Leave(all[2].waiter)
		show(t, all, "-F-Fww") // the fifth stands alone
		q.Leave(all[3].waiter)
		show(t, all, "-F--ww")
		q.Leave(all[1].waiter)
		show(t, all, "----Fw")
		q.Leave(all[4].waiter)
		show(t, all, "-----F")
	}, want(3, "a"), want(3, "a"), want(2, "a"), want(3, "a"), want(only, "a"), want(3, "a"))
}

func TestKinds_AWriterThatGivesUpLetsTheReadersBehindItThrough(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "FwwwwF")
		all[1].cancel()
		show(t, all, "F-FFwF")
		if c := all[1]; !c.returned || c.mine || c.ended == nil {
			t.Errorf("its Join returned: %v, mine %v", c.returned, c.mine)
		}
	}, want(0, "a"), want(only, "a"), want(0, "a"), want(0, "a"), want(2, "a"), want(0, "b"))
}

func TestSeveral_AreServedInOrderWhateverTheOrderOfTheirNames(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "Fwww")
		q.Leave(all[0].waiter)
		show(t, all, "-Fww")
		q.Leave(all[1].waiter)
		show(t, all, "--Fw")
		q.Leave(all[2].waiter)
		show(t, all, "---F")
	}, want(only, "a", "b"), want(only, "b", "a"), want(only, "a", "b"), want(only, "b", "a"))
}

// A bubble in which all wait for each other fails.
func TestSeveral_NeverWaitForEachOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, names := newLines(), []string{"a", "b", "c"}
		var inside [3]int // for each name; the race detector watches them too
		for i := range 300 {
			wanted := [][]int{{0, 1}, {1, 0}, {1, 2}, {2, 0}, {2, 1, 0}, {1}}[i%6]
			go func() {
				w := new(waiter)
				for _, n := range wanted {
					w.places = append(w.places, Place[*waiter]{Name: names[n], Kind: only})
				}
				q.Join(w, never, never, never)
				for _, n := range wanted {
					if inside[n]++; inside[n] > 1 {
						t.Errorf("%d have %s", inside[n], names[n])
					}
				}
				for _, n := range wanted {
					inside[n]--
				}
				q.Leave(w)
			}()
		}
		synctest.Wait()
		if len(q.byName) > 0 {
			t.Errorf("%d lines are left", len(q.byName))
		}
	})
}

func TestSeveral_OneThatWaitsInOneLineIsNotOvertakenInAnother(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "Fwww") // b is free, but the second has its turn there
		if ok, name, moved := q.TryJoin(want(only, "b")); ok || name != "b" || moved != nil {
			t.Errorf("it is overtaken by trying: %v, %q, %v", ok, name, moved)
		}
		q.Leave(all[0].waiter)
		show(t, all, "-Fww")
		q.Leave(all[1].waiter)
		show(t, all, "--FF")
	}, want(only, "a"), want(only, "a", "b"), want(only, "b"), want(only, "a"))
}

func TestSeveral_OneThatGivesUpLeavesAllItsLines(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		show(t, all, "Fwww") // the second waits for a only
		all[1].cancel()
		show(t, all, "F-wF")
		if a, b, c := q.Waiting("a"), q.Waiting("b"), q.Waiting("c"); a != 1 || b != 0 || c != 0 {
			t.Errorf("%d, %d and %d wait for a, b and c", a, b, c)
		}
		q.Leave(all[0].waiter)
		q.Leave(all[3].waiter)
		show(t, all, "--F-")
		if len(q.byName) != 2 {
			t.Errorf("there are %d lines", len(q.byName))
		}
	}, want(only, "a"), want(only, "b", "a", "c"), want(only, "a", "c"), want(only, "b"))
}

func TestSeveral_ATryIsInNoLineIfItIsRefusedInOne(t *testing.T) {
	t.Parallel()
	q, first := newLines(), want(only, "b")
	q.TryJoin(first)
	if ok, name, moved := q.TryJoin(want(only, "a", "b", "c")); ok || name != "b" || moved != nil {
		t.Errorf("it got %v, %q, %v", ok, name, moved)
	}
	if !q.tryOf("a") || !q.tryOf("c") {
		t.Error("it is still in the lines of the others")
	}
	first.over = true
	if _, name, moved := q.TryJoin(want(only, "b", "a")); name != "a" || moved != nil {
		t.Errorf("it is to wait for %q, though a is taken by one that is not over", name)
	}
}

func TestLeave_TwiceIsHarmless(t *testing.T) {
	stands(t, func(t *testing.T, q lines, all []*call) {
		q.Leave(all[0].waiter)
		q.Leave(all[0].waiter)
		show(t, all, "-Fww")
		q.Leave(want(only, "a", "b")) // it has never joined
		show(t, all, "-Fww")
		all[2].cancel()
		synctest.Wait()
		q.Leave(all[2].waiter)
		show(t, all, "-F-w")
		q.Leave(all[1].waiter)
		q.Leave(all[0].waiter)
		show(t, all, "---F")
	}, want(only, "a", "b"), want(only, "b", "a"), want(0, "a"), want(only, "b"))
}
