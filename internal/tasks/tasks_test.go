package tasks

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestGroup_JoinWaitsForTheLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Group
		if !g.Begin() {
			t.Fatal("a new group is closed")
		}
		let := make(chan struct{})
		g.Run(func() { <-let })
		g.After(time.Second, func() { time.Sleep(time.Second) })
		if !g.Close() || g.Close() {
			t.Error("want only the first Close to report true")
		}
		if g.Begin() {
			t.Error("a closed group began a task")
		}
		joined := make(chan struct{})
		go func() {
			g.Join()
			close(joined)
		}()
		g.End()
		close(let)
		time.Sleep(2*time.Second - 1)
		synctest.Wait()
		select {
		case <-joined:
			t.Error("joined before a function of After had returned")
		default:
		}
		time.Sleep(time.Nanosecond)
		<-joined
	})
}

func TestAlarm_IsStoppedOnceAndCountedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Begin()
		stopped := g.After(time.Second, func() { t.Error("called after Stop") })
		if !stopped.Stop() || stopped.Stop() {
			t.Error("want only the first Stop to report true")
		}
		called := g.After(time.Second, func() {})
		time.Sleep(time.Second)
		synctest.Wait()
		if called.Stop() {
			t.Error("stopped after it was called")
		}
		g.End()
		g.Join()
	})
}

func TestBacklog_DoesSoMuchAtATimeInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const limit, n = 3, 10
		var g Group
		g.Begin()
		b := NewBacklog(&g, limit)
		let := make(chan struct{})
		var atWork atomic.Int64
		done := make(chan int, n)
		for i := range n {
			started := b.Run(func() {
				atWork.Add(1)
				<-let
				done <- i
				atWork.Add(-1)
			})
			if started != (i < limit) {
				t.Errorf("work %d: started is %v", i, started)
			}
		}
		for range n {
			synctest.Wait()
			if got := atWork.Load(); got > limit {
				t.Errorf("%d at work", got)
			}
			let <- struct{}{}
		}
		synctest.Wait()
		seen := make(map[int]bool)
		for range n {
			i := <-done
			if seen[i] = true; i >= limit && len(seen) < i-limit+1 {
				t.Errorf("work %d overtook others", i)
			}
		}
		if !b.Run(func() {}) {
			t.Error("work has to wait though no other is left")
		}
		g.End()
		g.Join()
	})
}

func TestShared_IsDoneOnceForAllWhoAsk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s Shared
		calls, let, result := 0, make(chan struct{}), errors.New("result")
		work := func() error {
			calls++
			<-let
			return result
		}
		const n = 5
		got := make(chan error, n)
		for range n {
			go func() { got <- s.Do(work) }()
		}
		synctest.Wait()
		close(let)
		for range n {
			if err := <-got; err != result {
				t.Errorf("returned %v", err)
			}
		}
		if calls != 1 {
			t.Errorf("done %d times", calls)
		}
		if _ = s.Do(work); calls != 2 {
			t.Error("a later call did not do the work again")
		}
	})
}

func TestEither_EndsWithTheFirst(t *testing.T) {
	t.Parallel()
	first, second := errors.New("first"), errors.New("second")
	for _, one := range []bool{true, false} {
		ctx, end := context.WithCancelCause(t.Context())
		other, endOther := context.WithCancelCause(t.Context())
		both, release := Either(ctx, other)
		if both.Err() != nil {
			t.Fatal("ended before either context")
		}
		if one {
			end(first)
			endOther(second)
		} else {
			endOther(first)
			<-both.Done()
			end(second)
		}
		<-both.Done()
		if cause := context.Cause(both); cause != first {
			t.Errorf("ended with %v", cause)
		}
		if late, release := Either(t.Context(), other); late.Err() == nil {
			t.Error("it has not ended, though one has ended already")
		} else {
			release()
		}
		release()
		end(nil)
		endOther(nil)
	}
}
