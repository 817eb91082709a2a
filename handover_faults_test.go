package locker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func handsOverA(req any) bool { return handsOver(req, "a") }

// unlockAsync unlocks l in another goroutine.
func unlockAsync(ctx context.Context, l *locker.Lock) <-chan error {
	result := make(chan error, 1)
	go func() { result <- l.Unlock(ctx) }()
	return result
}

func TestAHandOverThatIsLostReleasesAndIsHeldOnce(t *testing.T) {
	t.Parallel()
	faults := map[string]func(context.Context, func() error) error{
		"it is never answered": neverAnswered,
		"it is answered never": func(ctx context.Context, call func() error) error {
			if err := call(); err != nil {
				return err
			}
			return neverAnswered(ctx, call)
		},
	}
	for what, fault := range faultsOfARequest {
		faults[what] = fault
	}
	for what, fault := range faults {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			b, ctx := setup(t), within(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			holder := lock(t, c, "a", "")
			heir, behind := inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")
			w.fail(1, handsOverA, fault)
			began := time.Now()
			if err := holder.Unlock(ctx); err != nil {
				t.Errorf("Unlock returned %v", err)
			}
			if took := time.Since(began); took > prompt {
				t.Errorf("Unlock took %v", took)
			}
			next := lockOf(t, heir)
			if took := time.Since(began); took > prompt {
				t.Errorf("the heir held after %v", took)
			}
			if w.pending() {
				t.Error("nothing was lost")
			}
			b.holds(t, next)
			if next.Token() <= holder.Token() {
				t.Errorf("token %d after %d", next.Token(), holder.Token())
			}
			unlock(t, next)
			last := lockOf(t, behind)
			b.holds(t, last)
			unlock(t, last)
			b.nothingQueued(t)
		})
	}
}

func TestAnUnlockMayBeGivenUpAtAnyMomentOfTheHandOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	for _, committed := range []bool{false, true} {
		holder := lock(t, c, "a", "")
		heir := inLine(within(t), t, c, 0, "a", "")
		g := w.stop(t, committed, handsOverA)
		ctx, cancel := context.WithCancel(within(t))
		result := unlockAsync(ctx, holder)
		receive(t, g.arrived)
		cancel()
		want(t, receive(t, result), context.Canceled)
		want(t, holder.Err(), locker.ErrReleased)
		g.open()
		next := lockOf(t, heir)
		b.holds(t, next)
		unlock(t, next)
		b.nothingQueued(t)
	}
	for d := 20 * time.Microsecond; d < 20*time.Millisecond; d += d / 5 {
		holder := lock(t, c, "a", "")
		heir := inLine(within(t), t, c, 0, "a", "")
		ctx, cancel := context.WithTimeout(within(t), d)
		if err := holder.Unlock(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		next := lockOf(t, heir)
		b.holds(t, next)
		unlock(t, next)
	}
	b.nothingQueued(t)
}

func TestAnHeirStaysOnTheSessionThatItWasFirstPutOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	former := fill(t, c, "former", 1000)
	fill(t, c, "latter", 998) // on a second session, which has room for two more
	holder := lock(t, c, "a", "")
	unlock(t, former[0]) // now the first session has room for one
	heir := inLine(within(t), t, c, 0, "a", "")
	g := w.stop(t, false, handsOverA)
	ctx, cancel := context.WithCancel(within(t))
	result := unlockAsync(ctx, holder)
	receive(t, g.arrived) // with the heir, the second session is full
	cancel()
	want(t, receive(t, result), context.Canceled)
	g.open() // while the withdrawal goes on
	next := lockOf(t, heir)
	b.holds(t, next)
	unlock(t, next)
	b.queued(t, "a", 0)
}

func TestAnEntryThatWasDeletedIsALossForItsHolderAndNoneForItsHeir(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t, locker.WithTTL(unhurried))
	for range 5 {
		holder := lock(t, c, "a", "")
		heir := inLine(ctx, t, c, 0, "a", "")
		b.delete(t, holder)
		wantLost(t, holder.Unlock(ctx), holder, locker.Deleted)
		next := lockOf(t, heir)
		b.holds(t, next)
		if next.Token() <= holder.Token() {
			t.Errorf("token %d after %d", next.Token(), holder.Token())
		}
		unlock(t, next)
	}
	b.nothingQueued(t)
}

func TestAnEntryThatIsDeletedDuringTheHandOverIsALossForItsHolderAndNoneForItsHeir(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	holder := lock(t, c, "a", "")
	heir := inLine(ctx, t, c, 0, "a", "")
	g := w.stop(t, false, handsOverA)
	result := unlockAsync(ctx, holder)
	receive(t, g.arrived)
	b.delete(t, holder)
	other := lock(t, b.client(t), "a", "") // who thus comes before the heir
	g.open()
	wantLost(t, receive(t, result), holder, locker.Deleted)
	b.queued(t, "a", 2)
	unlock(t, other)
	b.holds(t, lockOf(t, heir))
}

func TestAnHeirsEntryThatIsDeletedIsLostAndTheNextHasItsTurn(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, _ := b.wired(t, locker.WithTTL(unhurried))
	holder := lock(t, c, "a", "")
	other := lockAsync(ctx, b.client(t), "a", "")
	b.queued(t, "a", 2)
	heir, behind := inLine(ctx, t, c, 0, "a", "heir"), inLine(ctx, t, c, 1, "a", "")
	unlock(t, holder)
	present := lockOf(t, other)
	resp, err := b.etcd.Get(ctx, locker.DefaultPrefix+"a/", clientv3.WithLastCreate()...)
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "heir" {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := b.etcd.Delete(ctx, string(resp.Kvs[0].Key)); err != nil {
		t.Fatal(err)
	}
	err = receive(t, heir).err
	var lost *locker.LostError
	if !errors.As(err, &lost) || lost.Reason != locker.Deleted || lost.Token != resp.Kvs[0].CreateRevision {
		t.Errorf("the heir: %v", err)
	}
	b.queued(t, "a", 2)
	unlock(t, present)
	b.holds(t, lockOf(t, behind))
}

func TestALeaseThatIsRevokedDuringTheHandOverLeavesTheHeirItsTurn(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed=", committed), func(t *testing.T) {
			t.Parallel()
			b, ctx := setup(t), within(t)
			c, w := b.wired(t, locker.WithTTL(unhurried))
			holder := lock(t, c, "a", "")
			lease := leaseOf(t, c, holder)
			heir, behind := inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")
			g := w.stop(t, committed, handsOverA)
			result := unlockAsync(ctx, holder)
			receive(t, g.arrived)
			b.server.ExpireLease(t, lease)
			g.open()
			err := receive(t, result)
			if committed && err != nil || !committed && !errors.Is(err, locker.ErrLost) {
				t.Errorf("Unlock returned %v", err)
			}
			got := receive(t, heir)
			if committed { // it may have learned of the loss, or hold until then
				if got.err == nil {
					want(t, got.lock.Unlock(ctx), locker.ErrLost)
				} else {
					want(t, got.err, locker.ErrLost)
				}
				got = receive(t, behind)
			}
			if got.err != nil {
				t.Fatal(got.err)
			}
			b.holds(t, got.lock)
		})
	}
}

func TestAHandOverSurvivesTheLossOfItsSessionsRecord(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, w := b.wired(t, locker.WithTTL(unhurried))
	spoil := map[string]func(l *locker.Lock){
		"deleted": func(l *locker.Lock) {
			member := strings.TrimSuffix(l.Key()[strings.LastIndexByte(l.Key(), '/'):], ".2")
			resp, err := b.etcd.Delete(ctx, locker.DefaultPrefix+member)
			if err != nil || resp.Deleted != 1 {
				t.Fatalf("delete the record: %v, %v", resp, err)
			}
		},
		"written again": func(*locker.Lock) { // after a put whose outcome nobody knew
			before := b.records(t)
			short, cancel := context.WithCancel(ctx)
			w.fail(1, func(req any) bool { return writes(req, "fenced") }, func(context.Context, func() error) error {
				cancel()
				return errReplyLost
			})
			_, err := c.Lock(short, "fenced", "")
			want(t, err, context.Canceled)
			eventually(t, "the record is written", func() bool { return b.records(t) > before })
		},
	}
	for what, spoil := range spoil {
		holder := lock(t, c, "a", "")
		line := []<-chan outcome{inLine(ctx, t, c, 0, "a", ""), inLine(ctx, t, c, 1, "a", "")}
		spoil(holder)
		unlock(t, holder)
		next := lockOf(t, line[0])
		b.holds(t, next)
		if next.Token() <= holder.Token() {
			t.Errorf("%s: token %d after %d", what, next.Token(), holder.Token())
		}
		before := len(w.transactions(0))
		unlock(t, next)
		last := lockOf(t, line[1])
		if sent := w.transactions(before); len(sent) != 1 {
			t.Errorf("%s: after that handed over by %v", what, sent)
		}
		unlock(t, last)
		b.nothingQueued(t)
	}
}
