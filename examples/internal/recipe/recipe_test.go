package recipe_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/recipe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestInstances_ExcludeEachOtherAndLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	ctx, server := testContext(t), embedtest.Start(t)
	instances, err := recipe.Start(ctx, server.Endpoints(), 2, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	a, b := instances.All[0], instances.All[1]
	if _, err := a.Client.Lock(ctx, "name", a.Name); err != nil {
		t.Error(err)
	}
	if _, err := b.Client.TryLock(ctx, "name", b.Name); !errors.Is(err, locker.ErrLocked) {
		t.Errorf("TryLock of the other returned %v", err)
	}
	b.Network.Cut() // which Close heals
	if err := instances.Close(); err != nil {
		t.Error(err)
	}
	etcd := server.Client(t)
	keys, err := etcd.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	leases, err := etcd.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if keys.Count > 0 || len(leases.Leases) > 0 {
		t.Errorf("left in etcd: %d keys, %d leases", keys.Count, len(leases.Leases))
	}
}

func TestStart_ReportsWhyEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	if _, err := recipe.Start(testContext(t), []string{"nonsense"}, 1, time.Second); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("Start returned %v", err)
	}
}

func TestRun_EndsTheProgramsWithTheScript(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	instances, err := recipe.Start(ctx, embedtest.Start(t).Endpoints(), 2, testTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer instances.Close()
	untilEnd := func(ctx context.Context, i *recipe.Instance) error {
		return i.Client.Campaign(ctx, "name", i.Name, func(ctx context.Context, _ *locker.Lock) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}
	if err := instances.Run(ctx, untilEnd, func(context.Context) error { return nil }); err != nil {
		t.Errorf("after a script without an error: %v", err)
	}
	want := errors.New("wrong")
	if err := instances.Run(ctx, untilEnd, func(context.Context) error { return want }); !errors.Is(err, want) {
		t.Errorf("after a script with an error: %v", err)
	}
	fails := func(context.Context, *recipe.Instance) error { return want }
	waits := func(ctx context.Context) error { <-ctx.Done(); return nil }
	if err := instances.Run(ctx, fails, waits); !errors.Is(err, want) {
		t.Errorf("after a program with an error: %v", err)
	}
}
