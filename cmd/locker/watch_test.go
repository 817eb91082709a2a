package main

import (
	"fmt"
	"strings"
	"testing"

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
