package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestWatch_PrintsEachStateAcrossAHandOver(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first := locktest.Lock(t, worker(t, b), "a", "one")
	p := start(t, "watch", "a", "-o", "json", "--endpoints", b.Server.Endpoints()[0])
	want := func(state, value string, l *locker.Lock) {
		t.Helper()
		got := decode[transition](t, p.line(t))
		if got.Name != "a" || got.State != state || got.Value != value || got.Revision == 0 || got.Time.IsZero() {
			t.Errorf("%+v, want %s, %q", got, state, value)
		}
		if l == nil {
			if got.Holders != 0 || got.Token != 0 || got.Owner != nil || got.Lease != "" {
				t.Errorf("%+v, of nobody", got)
			}
		} else if got.Holders != 1 || got.Token != l.Token() || got.Lease != lease(l) || got.Kind != "exclusive" {
			t.Errorf("%+v, want token %d", got, l.Token())
		}
	}
	want("held", "one", first)
	waiter := waits(t, b, 2, "a", "two")
	locktest.Unlock(t, first)
	second := locktest.LockOf(t, waiter)
	want("held", "two", second)
	locktest.SetValue(t, second, "three")
	want("held", "three", second)
	locktest.Unlock(t, second)
	want("free", "", nil)
	p.wantInterrupted(t)
}

func TestWatch_OfAPrefixPrintsALineForEachName(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	a := locktest.Lock(t, worker(t, b), "x.a", "one", locker.WithLimit(2))
	p := start(t, "watch", "--prefix", "x.", "--endpoints", b.Server.Endpoints()[0])
	other := start(t, "watch", "--prefix", "x.", "-o", "wide", "--key-prefix", "locker/", "--endpoints", b.Server.Endpoints()[0])
	wantCells(t, p.line(t), fmt.Sprintf("THEN|x.a|held, limit 2|token %d|one", a.Token()))
	if got := cells(other.line(t))[0]; !strings.HasPrefix(got, fmt.Sprintf("THEN|x.a|held, limit 2|token %d|one|HERE|worker|lease %s|revision ", a.Token(), lease(a))) {
		t.Error(got)
	}
	other.wantInterrupted(t)
	locktest.Lock(t, worker(t, b), "y", "")
	locktest.Lock(t, worker(t, b), "x.a", "two", locker.WithLimit(2))
	wantCells(t, p.line(t), fmt.Sprintf("THEN|x.a|held, limit 2, 2 holders|token %d|one", a.Token()))
	l := locktest.Lock(t, worker(t, b), "x.b", "")
	wantCells(t, p.line(t), fmt.Sprintf(`THEN|x.b|held|token %d|""`, l.Token()))
	locktest.Unlock(t, l)
	wantCells(t, p.line(t), "THEN|x.b|free")
	p.wantInterrupted(t)
}

// Whose the entries are is read once, and again only for a holder that was not there then.
func TestWatch_DoesNotReadAQueueForEachState(t *testing.T) {
	t.Parallel()
	b, ctx := locktest.Setup(t), locktest.Within(t)
	for i := range 20 {
		locktest.Lock(t, worker(t, b), fmt.Sprint("x.", i), "")
	}
	first := locktest.Lock(t, worker(t, b), "y", "")
	next := waits(t, b, 2, "y", "")
	var reads atomic.Int64
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		switch req.(type) {
		case *pb.RangeRequest, *pb.TxnRequest:
			reads.Add(1)
		}
		return call()
	}))
	w := &watched{client: c, shown: true}
	w.readAll(ctx, "", locktest.Timeout)
	atFirst := reads.Load()
	locktest.Unlock(t, first)
	handed := locktest.LockOf(t, next)
	for _, holder := range locktest.List(t, worker(t, b), "") {
		if e := w.entryOf(ctx, holder); e.Key == "" || e.Owner.Program != "worker" {
			t.Errorf("%+v", e)
		}
	}
	if n := reads.Load(); n != atFirst {
		t.Errorf("%d reads at first, and %d more", atFirst, n-atFirst)
	}
	locktest.Unlock(t, handed)
	again := locktest.Lock(t, worker(t, b), "y", "")
	if e := w.entryOf(ctx, locktest.Get(t, worker(t, b), "y")); e.Key != again.Key() || reads.Load() == atFirst {
		t.Errorf("%+v, %d reads", e, reads.Load())
	}
}

func TestWatch_OfANameGoesOnAfterADisconnect(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	p := start(t, "watch", "a", "--endpoints", proxy.Endpoints()[0])
	wantCells(t, p.line(t), "THEN|a|free")
	proxy.Cut()
	l := locktest.Lock(t, worker(t, b), "a", "one")
	proxy.Heal()
	wantCells(t, p.line(t), fmt.Sprintf("THEN|a|held|token %d|one", l.Token()))
	p.wantInterrupted(t)
}

func TestWatch_TakesThePrefixOfKeysFromTheEnvironmentOrAFlag(t *testing.T) {
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t, locker.WithPrefix("other/")), "a", "one")
	m := locktest.Lock(t, b.Client(t, locker.WithPrefix("third/")), "a", "two")
	t.Setenv("LOCKER_PREFIX", "other/")
	t.Setenv("ETCDCTL_ENDPOINTS", b.Server.Endpoints()[0])
	wantCells(t, start(t, "watch", "a").line(t), fmt.Sprintf("THEN|a|held|token %d|one", l.Token()))
	wantCells(t, start(t, "watch", "--prefix", "a").line(t), fmt.Sprintf("THEN|a|held|token %d|one", l.Token()))
	wantCells(t, start(t, "watch", "--key-prefix", "third/", "a").line(t), fmt.Sprintf("THEN|a|held|token %d|two", m.Token()))
}
