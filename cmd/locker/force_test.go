package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestForceUnlock_RemovesTheEntryWithThatTokenAndTellsWhatFollows(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, b.Client(t, locker.WithTTL(locktest.Steady)), "a", "one")
	other := locktest.Lock(t, worker(t, b), "b", "")
	waiter := waits(t, b, 2, "a", "two")
	got := call(t, b, "force-unlock", "a", "--token", fmt.Sprint(l.Token()), "--yes")
	if got.code != 0 || got.stdout != fmt.Sprintf("removed the entry with token %d from the queue of a\n", l.Token()) {
		t.Errorf("exit code %d, %q", got.code, got.stdout)
	}
	for _, want := range []string{
		fmt.Sprintf("%d", l.Token()), "one", lease(l), "held",
		"The old holder may go on for up to TTL/3 (at most 6.7s); its guarded writes are refused from now on.",
	} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("no %q in\n%s", want, got.stderr)
		}
	}
	locktest.LockOf(t, waiter)
	locktest.Lost(t, l, locker.Deleted)
	b.WantHeldAlone(t, other)
}

func TestForceUnlock_WithAnotherTokenRemovesNothing(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, worker(t, b), "a", "one")
	got := call(t, b, "force-unlock", "a", "--token", fmt.Sprint(l.Token()+1), "--yes").want(t, 1)
	if !strings.Contains(got.stderr, fmt.Sprintf(`nobody has token %d in the queue of "a"`, l.Token()+1)) || got.stdout != "" {
		t.Errorf("%q, %q", got.stdout, got.stderr)
	}
	call(t, b, "force-unlock", "b", "--token", fmt.Sprint(l.Token()), "--yes", "--lease").want(t, 1)
	b.WantHeldAlone(t, l)
}

func TestForceUnlock_SaysWhichNamesMayGoAlong(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := worker(t, b)
	alone := locktest.Lock(t, c, "alone", "")
	l := locktest.Lock(t, c, "a", "", locker.And("b", ""), locker.And("c", ""))
	for name, token := range map[string]int64{"alone": alone.Token(), "b": l.Token()} {
		got := call(t, b, "force-unlock", name, "--token", fmt.Sprint(token), "--yes")
		if says := strings.Contains(got.stderr, "the same token and lease: a, c. If"); says != (name == "b") || got.code != 0 {
			t.Errorf("%s: exit code %d, %s", name, got.code, got.stderr)
		}
	}
	locktest.WantLost(t, l.Unlock(locktest.Within(t)), l, locker.Deleted)
}

func TestForceUnlock_WithoutATerminalNeedsYes(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, worker(t, b), "a", "one")
	got := callWith(t, strings.NewReader("yes\n"), "--endpoints", b.Server.Endpoints()[0], "force-unlock", "a", "--token", fmt.Sprint(l.Token())).want(t, 2)
	if !strings.Contains(got.stderr, "--yes") {
		t.Error(got.stderr)
	}
	b.WantHeldAlone(t, l)
}

func TestForceUnlock_RemovesWhoWaitsAndWhatHasNoLease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.PutKey(t, b.Etcd, "locker/a/by hand", "")
	stuck := locktest.Get(t, worker(t, b), "a")
	waiter := waits(t, b, 2, "a", "two")
	queue, err := worker(t, b).Queue(locktest.Within(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	got := call(t, b, "force-unlock", "a", "--token", fmt.Sprint(queue[1].Token), "--yes", "-o", "json")
	if rows := decode[[]row](t, got.stdout); got.code != 0 || len(rows) != 1 || rows[0].Key != queue[1].Key || !strings.Contains(got.stderr, "It only waits") {
		t.Errorf("exit code %d, %+v, %s", got.code, rows, got.stderr)
	}
	if got := locktest.Receive(t, waiter); got.Err == nil {
		t.Error("the waiter holds the name")
	}
	if got := call(t, b, "force-unlock", "a", "--token", fmt.Sprint(stuck.Token), "--yes", "--lease").want(t, 2); !strings.Contains(got.stderr, "no lease") {
		t.Error(got.stderr)
	}
	got = call(t, b, "force-unlock", "a", "--token", fmt.Sprint(stuck.Token), "--yes")
	if got.code != 0 || !strings.Contains(got.stderr, "It has no lease: its program may never notice; stop it first.") || strings.Contains(got.stderr, "TTL/3") {
		t.Errorf("exit code %d, %s", got.code, got.stderr)
	}
	b.WantNoEntries(t)
}

func TestForceUnlock_WarnsThatAnotherProgramMayNeverNotice(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	lease, err := b.Etcd.Grant(locktest.Within(t), 60)
	if err == nil {
		_, err = b.Etcd.Put(locktest.Within(t), "locker/a/other", "", clientv3.WithLease(lease.ID))
	}
	if err != nil {
		t.Fatal(err)
	}
	got := call(t, b, "force-unlock", "a", "--token", fmt.Sprint(locktest.Get(t, worker(t, b), "a").Token), "--yes")
	if got.code != 0 || !strings.Contains(got.stderr, "not an entry of Locker: its program may never notice; stop it first.") || strings.Contains(got.stderr, "TTL/3") {
		t.Errorf("exit code %d, %s", got.code, got.stderr)
	}
	b.WantNoEntries(t)
}

func TestForceUnlock_EndsIfEtcdStopsToAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	l := locktest.Lock(t, worker(t, b), "a", "one")
	proxy := b.Server.Proxy(t)
	etcd := proxy.Client(t)
	c := locktest.NewClient(t, etcd)
	shown, err := c.Queue(locktest.Within(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	proxy.Freeze()
	ctx := locktest.Within(t)
	for _, revoke := range []bool{false, true} {
		var stderr strings.Builder
		f := &force{
			program: &program{stderr: &stderr, connection: connection{dialTimeout: 10 * time.Millisecond}},
			name:    "a", token: l.Token(), yes: true, lease: revoke,
		}
		for doing, err := range map[string]error{
			"show":   func() error { _, err := f.show(ctx, c, etcd); return err }(),
			"remove": f.remove(ctx, c, etcd, shown),
		} {
			if err == nil || !strings.Contains(err.Error(), "--dial-timeout") {
				t.Errorf("%s, with --lease %v: %v", doing, revoke, err)
			}
		}
	}
	b.WantHeldAlone(t, l)
}

func TestForceUnlock_WithLeaseListsWhatGoesAlongAndRevokesIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, ctx := b.Client(t, locker.WithTTL(locktest.Steady)), locktest.Within(t) // a loss is noticed within a third of it
	a, other := locktest.Lock(t, c, "a", "one"), locktest.Lock(t, c, "b", "two")
	survivor := locktest.Lock(t, worker(t, b), "c", "three")
	if _, err := other.Commit(ctx, clientv3.OpPut("service/b", "", clientv3.WithLease(locktest.LeaseOf(other)))); err != nil {
		t.Fatal(err)
	}
	got := call(t, b, "force-unlock", "a", "--token", fmt.Sprint(a.Token()), "--lease", "--yes")
	if got.code != 0 || !strings.HasPrefix(got.stdout, "removed ") {
		t.Errorf("exit code %d, %q", got.code, got.stdout)
	}
	_, listed, _ := strings.Cut(got.stderr, "Revoking lease "+lease(a)+" removes these locks and waiters:\n")
	wantCells(t, listed,
		"NAME|STATE|KIND|VALUE|TOKEN",
		fmt.Sprintf("a|held|exclusive|one|%d", a.Token()),
		fmt.Sprintf("b|held|exclusive|two|%d", other.Token()),
		"and these other keys:",
		"service/b",
	)
	if b.Leases(t)[locktest.LeaseOf(a)] {
		t.Error("the lease is there")
	}
	locktest.Lost(t, other, locker.Revoked)
	if entries := b.Entries(t); !slices.Equal(entries, []string{survivor.Key()}) {
		t.Errorf("left: %q", entries)
	}
}
