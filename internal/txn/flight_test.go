package txn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// inFlight is inGroup with as many transactions in flight as a Store has.
func inFlight(t *testing.T, script func(n int, keys string) []error, f func(t *testing.T, g *grouped)) {
	t.Helper()
	inGroup(t, script, func(t *testing.T, g *grouped) {
		g.InFlight = InFlight
		f(t, g)
	})
}

func TestGroup_HasTwoTransactionsInFlight(t *testing.T) {
	inFlight(t, nil, func(t *testing.T, g *grouped) {
		all := g.all("a b c d")
		g.at(moment / 2)
		if n := len(g.keys()); n != 2 {
			t.Errorf("%d are in flight", n)
		}
		g.at(time.Second)
		g.idle()
		if keys := strings.Join(g.keys()[2:], ", "); keys != "c d" {
			t.Errorf("after them was sent %q", keys)
		}
		for _, w := range all {
			w.is(t, nil, true)
		}
	})
}

func TestGroup_ASecondTransactionWaitsUntilHalfOfTheUsualNumberHasGathered(t *testing.T) {
	inFlight(t, nil, func(t *testing.T, g *grouped) {
		g.group.usual = 8
		g.submit("a", "a", 0)
		for i, name := range []string{"b", "c", "d", "e", "f"} {
			g.at(time.Duration(i+1) * time.Millisecond)
			g.submit(name, name, 0)
		}
		g.at(time.Second)
		// That is 7 after one lone write, and 6 after the next transaction.
		g.sent(sent{0, "a"}, sent{3 * time.Millisecond, "b c d"}, sent{moment + 3*time.Millisecond, "e f"})
	})
}

func TestGroup_TheUsualNumberFollowsTheCallers(t *testing.T) {
	inFlight(t, nil, func(t *testing.T, g *grouped) {
		for i := range 40 {
			g.submit(fmt.Sprint(i), "k", 0)
		}
		g.at(time.Second)
		if got := g.group.usual; got < 30 {
			t.Errorf("with 40 callers it is %d", got)
		}
		for i := range 40 {
			g.submit("a", "a", 0)
			g.at(time.Duration(2+i) * time.Second)
		}
		if got := g.group.usual; got != 1 {
			t.Errorf("with one caller it is %d", got)
		}
	})
}

func TestGroup_KeepsTheOrderOfANameWithTwoInFlight(t *testing.T) {
	inFlight(t, nil, func(t *testing.T, g *grouped) {
		all := g.all("a1 a2 b1 a3")
		g.at(time.Second)
		g.idle()
		// a2 would be free to go beside a1 if their order did not matter.
		for i, at := range []time.Duration{0, moment, 0, 2 * moment} {
			if got := g.kv.at(all[i].key()); got != at {
				t.Errorf("%s was sent at %v, want %v", all[i].key(), got, at)
			}
			all[i].is(t, nil, true)
		}
	})
}

// at returns when the transaction that writes key was sent.
func (k *scriptedKV) at(key string) time.Duration {
	for _, s := range k.sent {
		if strings.Contains(s.keys, key) {
			return s.at
		}
	}
	return never
}

// A write whose transaction has kept the others of its name waiting for too long lets them overtake it; but when it
// gathers again, it is sent before those that wait.
func TestGroup_AWriteThatFailsIsSentBeforeLaterOnesOfItsName(t *testing.T) {
	inFlight(t, times(errPassing), func(t *testing.T, g *grouped) {
		all := g.all("a1 a2 a3")
		g.at(time.Minute)
		g.idle()
		var order []string
		for _, w := range all {
			w.landings(t)
		}
		for _, key := range g.keys() {
			order = append(order, strings.Fields(key)...)
		}
		if got := strings.Join(order, " "); got != "a1 a2 a1 a3" {
			t.Errorf("sent in the order %q", got)
		}
	})
}

// flat reports for each transaction of several writes whether it was flat.
func (g *grouped) flat() (flat []bool) {
	g.kv.mu.Lock()
	defer g.kv.mu.Unlock()
	for _, r := range g.kv.requests {
		if len(r.Success) > 1 {
			flat = append(flat, r.Success[0].GetRequestTxn() == nil)
		}
	}
	return flat
}

func TestGroup_AFlatTransactionGivesEachWriteItsPartOfTheAnswer(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.submit("x", "x", 0)
		one := g.submitTxn(Txn{Name: "a", When: []*pb.Compare{CmpCreate("a", 0)}, Then: []*pb.RequestOp{OpPut("a", "", 0)}})
		two := g.submitTxn(Txn{Name: "b", When: []*pb.Compare{CmpCreate("b", 0), CmpCreate("c", 0)}, Then: []*pb.RequestOp{OpPut("b", "", 0), OpPut("c", "", 0)}})
		g.at(time.Second)
		g.idle()
		request := g.kv.requests[1]
		if len(request.Compare) != 3 || len(request.Success) != 3 || request.Success[2].GetRequestPut() == nil {
			t.Errorf("sent %v", request)
		}
		for w, parts := range map[*followed]int{one: 1, two: 2} {
			w.is(t, nil, true)
			if n := len(w.result.Resp.Responses); n != parts {
				t.Errorf("%s was given %d responses", w.key(), n)
			}
		}
	})
}

func TestGroup_AFlatTransactionThatIsRefusedIsNestedNext(t *testing.T) {
	refused := 0
	script := func(_ int, keys string) []error {
		if refused == 0 && keys == "a b" {
			refused++
			return []error{errNotThen}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		all := g.all("x a b")
		g.at(time.Second)
		more := g.all("x a b x a b x a b")
		g.at(2 * time.Second)
		g.idle()
		for _, w := range append(all, more...) {
			w.is(t, nil, true) // the refusal was certain, so the other attempt was the only one
		}
		if got, want := fmt.Sprint(g.flat()), "[true false true true true]"; got != want {
			t.Errorf("flat were %v, want %v", got, want)
		}
	})
}

func TestGroup_WhatAFlatTransactionWasRefusedForGoesBeforeOthers(t *testing.T) {
	script := func(n int, _ string) []error {
		if n == 1 {
			return []error{errNotThen}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		g.all("x a b")
		g.at(moment + moment/2)
		g.all("c d")
		g.at(time.Second)
		g.sent(sent{0, "x"}, sent{moment, "a b"}, sent{2 * moment, "a b c d"})
		if got, want := fmt.Sprint(g.flat()), "[true false]"; got != want {
			t.Errorf("flat were %v, want %v", got, want)
		}
	})
}

func TestGroup_AFlatTransactionHasRoomForTheGuardsOfItsWrites(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.submit("x", "x", 0)
		for i := range MaxTogether {
			key := fmt.Sprint(i)
			g.submitTxn(Txn{Name: key, Record: &Record{Key: key}, When: []*pb.Compare{CmpCreate(key, 0)}, Then: []*pb.RequestOp{OpPut(key, "", 0)}})
		}
		g.at(time.Second)
		g.idle()
		for _, r := range g.kv.requests {
			if n := max(len(r.Compare), len(r.Success)); n > MaxTogether {
				t.Errorf("a transaction has %d operations", n)
			}
		}
	})
}

func TestGroup_FlatTransactionsBecomeRareWhereTheyAreRefused(t *testing.T) {
	script := func(_ int, keys string) []error {
		if strings.Contains(keys, "bad") {
			return []error{errNotThen}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		const n = 200
		for i := range n {
			g.all("x a bad")
			g.at(time.Duration(i+1) * time.Second)
		}
		g.idle()
		flat := 0
		for _, is := range g.flat() {
			if is {
				flat++
			}
		}
		if flat < 2 || flat > 12 {
			t.Errorf("%d of %d were flat", flat, n)
		}
	})
}

func TestGroup_AWriteMayHaveAnotherFormInAFlatTransaction(t *testing.T) {
	refuse := false
	script := func(_ int, keys string) []error {
		if refuse && keys == "a c" {
			return []error{errNotThen}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		for _, refused := range []bool{false, true} {
			refuse = refused
			sent := len(g.kv.requests)
			g.submit("x", "x", 0)
			both := g.submitTxn(Txn{
				Name: "a",
				When: []*pb.Compare{CmpCreate("a", 0)},
				Then: []*pb.RequestOp{OpPut("a", "", 0), OpPut("b", "", 0)},
				Flat: &Flat{When: []*pb.Compare{CmpNone("a", "b")}, Then: []*pb.RequestOp{OpPut("a", "", 0)}},
			})
			g.submit("c", "c", 0)
			g.at(g.now() + time.Second)
			g.idle()
			both.is(t, nil, true)
			want := []string{"x", "a c"}
			if refused {
				want = append(want, "a b c")
			}
			if got := g.keys()[sent:]; !slices.Equal(got, want) {
				t.Errorf("sent %q, want %q", got, want)
			}
			if flat := g.kv.requests[sent+1].Compare; len(flat) != 1 || flat[0].String() != CmpNone("a", "b").String() {
				t.Errorf("the compares of the flat one are %v", flat)
			}
			if got, want := len(both.result.Resp.Responses), map[bool]int{false: 1, true: 2}[refused]; got != want {
				t.Errorf("it was given %d responses, want %d", got, want)
			}
		}
	})
}

// write calls Write in a goroutine, and returns its error and when it has returned.
func (g *grouped) write(ctx context.Context, key string) <-chan error {
	done := make(chan error, 1)
	g.Tasks.Run(func() {
		_, _, err := g.Write(ctx, &Write{Txn: Txn{Name: key, Then: []*pb.RequestOp{OpPut(key, "", 0)}}})
		done <- err
	})
	return done
}

func TestStart_ReturnsSoonAfterItsContextHasEnded(t *testing.T) {
	never := times(errNeverComes, errNeverComes, errNeverComes, errNeverComes, errNeverComes, errNeverComes)
	for name, test := range map[string]struct {
		script func(int, string) []error
		ends   time.Duration
		want   error
	}{
		"an answer that is about to come is waited for": {nil, moment - endedWait/2, nil},
		"another is not":                  {nil, moment - 2*endedWait, context.Canceled},
		"nor one that is late already":    {never, testDelay + testDelay/2, context.Canceled},
		"nor if it had ended at the call": {nil, 0, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			inFlight(t, test.script, func(t *testing.T, g *grouped) {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(test.ends, cancel)
				err := <-g.write(ctx, "a")
				if !errors.Is(err, test.want) {
					t.Errorf("returned %v, want %v", err, test.want)
				}
				if late := g.now() - test.ends; late > endedWait {
					t.Errorf("returned %v after the end", late)
				}
				g.at(time.Minute)
				g.idle()
			})
		})
	}
}

func TestStart_LeavesTheWriteToTheBackground(t *testing.T) {
	for name, test := range map[string]struct{ ended, slow bool }{
		"if its context has ended": {ended: true},
		"where answers are slow":   {slow: true},
	} {
		t.Run(name, func(t *testing.T) {
			inFlight(t, nil, func(t *testing.T, g *grouped) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.ended {
					cancel()
				}
				if test.slow {
					g.submit("b", "b", 0) // which takes a moment
					g.at(time.Second)
				}
				began := g.now()
				w := &Write{Txn: Txn{Name: "a", Then: []*pb.RequestOp{OpPut("a", "", 0)}}}
				g.Start(ctx, w)
				if took := g.now() - began; took != 0 {
					t.Errorf("Start took %v", took)
				}
				g.at(2 * time.Second)
				if !w.Applied() || !w.Result().Only {
					t.Errorf("the outcome is %+v", w.Result())
				}
				g.idle()
			})
		})
	}
}

func TestStart_AnotherWriteDoesNotDependOnTheContextOfTheCaller(t *testing.T) {
	inFlight(t, nil, func(t *testing.T, g *grouped) {
		const large = maxBytesTogether * 2 / 3 // two are too large for one transaction
		g.submit("x", "x", 0)
		g.group.usual = 4 // so the second transaction waits for two writes
		other := g.submit("a", "a", large)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(moment/2, cancel)
		w := &Write{Txn: Txn{Name: "b", Then: []*pb.RequestOp{OpPut("b", strings.Repeat("v", large), 0)}}}
		g.Start(ctx, w)
		g.at(time.Minute)
		other.is(t, nil, true)
		if !w.Applied() {
			t.Errorf("the outcome is %+v", w.Result())
		}
		g.idle()
	})
}

func TestForget_OfAWriteInDoubtThatWaitsToBeSentAgainSaysSo(t *testing.T) {
	script := func(_ int, keys string) []error {
		if keys == "a" {
			return []error{errPassing}
		}
		return []error{errNeverComes}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		a := g.submit("a", "a", 0)
		g.at(moment / 2)
		stuck := g.submit("b", "b", 0) // leaves when a has failed
		for g.Waiting() != 1 || len(g.keys()) != 2 {
			g.at(g.now() + time.Millisecond)
		}
		if got := g.Forget(&a.Write); got != errPassing {
			t.Errorf("Forget returns %v, want %v", got, errPassing)
		}
		a.landings(t)
		g.Forget(&stuck.Write)
		g.at(time.Minute)
		g.idle()
	})
}

// A write that is on its way with another transaction by the time its first has failed is not sent by both.
func TestGroup_AWriteThatHasMovedOnIsNotSentAgainForItsFirstTransaction(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		a := g.submit("a", "a", 0)
		g.group.mu.Lock()
		first := a.batch
		a.batch = g.group.newBatch(nil) // as separate does it
		g.group.mu.Unlock()
		g.group.again(first, []*Write{&a.Write})
		g.at(time.Second)
		a.is(t, nil, true)
		if n := len(g.keys()); n != 1 {
			t.Errorf("it was sent %d times", n)
		}
		g.idle()
	})
}

func TestGroup_AMissingRecordDoesNotSeparateTheWritesOfOthers(t *testing.T) {
	for _, flat := range []bool{true, false} {
		t.Run(fmt.Sprintf("flat %v", flat), func(t *testing.T) {
			refused := 0
			script := func(_ int, keys string) []error {
				if refused == 0 && keys == "a b c d" {
					refused++
					return []error{errOldEpoch} // r is of newEpoch now, gone is not there
				}
				return []error{nil}
			}
			inGroup(t, script, func(t *testing.T, g *grouped) {
				if !flat {
					g.group.flat.skip = 1
				}
				g.kv.gone = "gone"
				guarded := func(name, key string, epoch int64) *followed {
					record := &Record{Key: key, Learn: func(int64) {}}
					return g.submitTxn(Txn{Name: name, Record: record, Epoch: epoch, Then: []*pb.RequestOp{OpPut(name, "", 0)}})
				}
				g.submit("x", "x", 0)
				all := []*followed{guarded("a", "r", newEpoch), guarded("b", "gone", 5), g.submit("c", "c", 0), guarded("d", "s", 5)}
				g.at(time.Second)
				got := g.keys()
				slices.Sort(got[2:]) // they are sent at the same time
				if want := []string{"x", "a b c d", "a c d", "b"}; !slices.Equal(got, want) {
					t.Errorf("sent %q, want %q", got, want)
				}
				for _, w := range all {
					w.is(t, nil, true)
				}
				g.idle()
			})
		})
	}
}

func TestStart_AnAnswerOfTheHedgeReleasesTheCaller(t *testing.T) {
	inFlight(t, times(errNeverComes), func(t *testing.T, g *grouped) {
		if err := <-g.write(t.Context(), "a"); err != nil {
			t.Errorf("returned %v", err)
		}
		if got, want := g.now(), testDelay+moment+endedWait; got < want || got > want+time.Millisecond {
			t.Errorf("returned after %v, want %v", got, want)
		}
		g.idle()
	})
}

// The attempt of a caller that waits for long is replaced by one that may take as long as it likes.
func TestStart_AnAnswerThatIsLateIsWaitedForInTheBackground(t *testing.T) {
	const silence = testDelay + 4*testDelay + moment
	var start time.Time
	silent := func(int, string) []error {
		if time.Since(start) < silence {
			return []error{errNeverComes}
		}
		return []error{nil}
	}
	inFlight(t, silent, func(t *testing.T, g *grouped) {
		start = g.start
		if err := <-g.write(t.Context(), "a"); err != nil {
			t.Errorf("returned %v", err)
		}
		g.at(time.Minute)
		g.idle()
		replaced := false
		for _, s := range g.kv.sent {
			replaced = replaced || s.at >= testDelay+g.LateAnswerWait() && s.at < silence
		}
		if !replaced {
			t.Errorf("sent %v", g.kv.sent)
		}
	})
}

func TestStart_AWriteThatFailsIsTriedAgainInTheBackground(t *testing.T) {
	inFlight(t, times(errPassing, errPassing), func(t *testing.T, g *grouped) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if err := <-g.write(ctx, "a"); err != nil {
			t.Errorf("returned %v", err)
		}
		if n := len(g.keys()); n != 3 {
			t.Errorf("it was sent %d times", n)
		}
		g.idle()
	})
}
