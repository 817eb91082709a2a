package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testTimeout = 4 * time.Minute // the first test compiles etcd

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestCommand_MeasuresARowOnARealEtcd(t *testing.T) {
	out := filepath.Join(t.TempDir(), "results")
	var stdout, stderr bytes.Buffer
	err := command(testContext(t), []string{"-quick", "-row", "P1", "-rounds", "1", "-out", out}, &stdout, &stderr)
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if !strings.Contains(stdout.String(), "lock + unlock, one goroutine, free name") {
		t.Errorf("the table is\n%s", &stdout)
	}
	text, err := os.ReadFile(filepath.Join(out, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rep report
	if err := json.Unmarshal(text, &rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) != 1 || rep.Machine.Etcd == "" {
		t.Fatalf("the report is %+v", rep)
	}
	for _, name := range []string{floor, ours, etcdMutex} {
		if m := rep.Results[0].Sides[name]; m == nil || m.Median <= 0 || len(m.Rounds) != 1 {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// buildEtcd returns the etcd program that the benchmarks use.
func buildEtcd(t *testing.T) string {
	t.Helper()
	program, err := etcdproc.Build(testContext(t), etcdVersion, nil)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func TestRows_AreMeasuredOnARealEtcdAndLeaveNothingInIt(t *testing.T) {
	t.Parallel()
	r := fakeRunner()
	r.etcd.Dir, r.etcd.Program, r.peers = t.TempDir(), buildEtcd(t), peerAddresses{}
	cluster, stop, err := r.startCluster(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	r.endpoints = cluster.Endpoints()
	r.workload = workload{
		rounds: 2, runUp: 10 * time.Millisecond, period: 50 * time.Millisecond, history: 40, holds: 20, waiters: 5,
		bulk: 2*keysPerLease + 1, bulkTTL: 3 * time.Second, crowd: 20, idle: 100 * time.Millisecond, queue: 200, company: 150, readers: 10, few: 1,
	}
	for _, w := range rows(r.workload) {
		results, err := r.run(testContext(t), w)
		period := r.workload.period
		for err != nil && r.workload.period < 10*time.Second {
			t.Logf("%s: %v", w.id, err) // a busy machine may do nothing at all in so short a time
			r.workload.period *= 8
			results, err = r.run(testContext(t), w)
		}
		r.workload.period = period
		if err != nil || len(results) != len(w.lines) {
			t.Errorf("%s: %d results, %v", w.id, len(results), err)
		}
		for _, res := range results {
			t.Log(res.summary())
		}
	}
	a := &arena{endpoints: r.endpoints}
	defer func() { _ = a.close() }()
	etcd, err := a.connect()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := etcd.Get(testContext(t), "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || resp.Count > 0 {
		t.Errorf("left in etcd: %v, %v", resp, err)
	}
}

func TestCommand_LeavesNothingBehindWhenInterrupted(t *testing.T) {
	cache := t.TempDir()
	if userCache, err := os.UserCacheDir(); err == nil { // so that etcd is not compiled again
		_ = os.Mkdir(filepath.Join(cache, "locker"), 0o700)
		_ = os.Symlink(filepath.Join(userCache, "locker", "etcd-"+etcdVersion), filepath.Join(cache, "locker", "etcd-"+etcdVersion))
	}
	t.Setenv("XDG_CACHE_HOME", cache)
	ctx, interrupt := context.WithCancel(testContext(t))
	// The first line of a run is written when its first row is done.
	err := command(ctx, []string{"-quick", "-rounds", "1", "-row", "P1,P3,P4,P8"}, os.Stdout, writerFunc(func([]byte) { interrupt() }))
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("command returned %v, want context.Canceled", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "locker", "bench-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// writerFunc is an io.Writer that calls a function.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestCommand_RejectsInvalidArguments(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-row", "P99"}, {"P4"}, {"-rounds", "x"}, {"-members", "2"}} {
		if err := command(testContext(t), args, &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

// fakeSide returns a side that appends its name to order in each round.
func fakeSide(name string, peer bool, order *[]string, err error) side {
	return side{name: name, peer: peer, open: func(context.Context, *arena) (round, error) {
		return func(context.Context) (figures, error) {
			*order = append(*order, name)
			return figures{rate: 1}, err
		}, nil
	}}
}

func fakeRunner() *runner {
	return &runner{
		workload: workload{rounds: 3}, endpoints: []string{"nowhere"}, version: "none", id: "0000",
		peers: peerAddresses{redis: "nowhere"}, progress: newProgress(&bytes.Buffer{}),
	}
}

func TestRounds_BeginWithEachSideInTurn(t *testing.T) {
	t.Parallel()
	var order []string
	w := row{id: "P0", sides: []side{fakeSide(ours, false, &order, nil), fakeSide(etcdMutex, false, &order, nil)}, lines: []line{{figure: rate, against: etcdMutex}}}
	results, err := fakeRunner().run(testContext(t), w)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{ours, etcdMutex, etcdMutex, ours, ours, etcdMutex}; !slices.Equal(order, want) {
		t.Errorf("order: %v", order)
	}
	if len(results) != 1 || results[0].Ratio != 1 {
		t.Errorf("results: %+v", results)
	}
}

func TestSides_AreOpenedAgainForEachRoundIfThereAreSeveralMembers(t *testing.T) {
	t.Parallel()
	for _, endpoints := range [][]string{{"one"}, {"one", "two", "three"}} {
		var ids []string
		closed := 0
		s := side{name: ours, open: func(_ context.Context, a *arena) (round, error) {
			ids = append(ids, a.id)
			a.onClose(func() error { closed++; return nil })
			return func(context.Context) (figures, error) { return figures{rate: 1}, nil }, nil
		}}
		r := fakeRunner()
		r.endpoints = endpoints
		if _, err := r.run(testContext(t), row{id: "P0", sides: []side{s}, lines: []line{{figure: rate}}}); err != nil {
			t.Fatal(err)
		}
		want := len(endpoints) // there are three rounds
		if slices.Sort(ids); len(slices.Compact(ids)) != want || closed != want {
			t.Errorf("%d members: opened as %v, closed %d times", len(endpoints), ids, closed)
		}
	}
}

func TestPeer_ThatFailsIsReportedAndDoesNotEndTheRun(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var order []string
	r := fakeRunner()
	w := row{id: "P0", sides: []side{fakeSide(ours, false, &order, nil), fakeSide("redislock", true, &order, broken)}, lines: []line{{figure: rate}}}
	if _, err := r.run(testContext(t), w); err != nil {
		t.Fatal(err)
	}
	if want := []string{ours, "redislock", ours, ours}; !slices.Equal(order, want) {
		t.Errorf("order: %v", order)
	}
	if len(r.trouble) != 1 || !strings.Contains(r.trouble[0], "broken") {
		t.Errorf("trouble: %v", r.trouble)
	}
	w.sides[0] = fakeSide(ours, false, &order, broken)
	if _, err := r.run(testContext(t), w); !errors.Is(err, broken) {
		t.Errorf("a side that fails: %v", err)
	}
}

func TestRow_ThatFailsIsReportedAndTheOthersAreMeasured(t *testing.T) {
	t.Parallel()
	var order []string
	r := fakeRunner()
	r.etcd.Dir = t.TempDir()
	lines := []line{{figure: rate}}
	rep, err := r.report(testContext(t), []row{
		{id: "P0", sides: []side{fakeSide(ours, false, &order, errors.New("broken"))}, lines: lines},
		{id: "P1", sides: []side{fakeSide(ours, false, &order, nil)}, lines: lines},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) != 1 || rep.Results[0].Row != "P1" {
		t.Errorf("results: %+v", rep.Results)
	}
	if !slices.Equal(rep.Failed, []string{"P0"}) || len(rep.Trouble) != 1 {
		t.Errorf("failed: %v, trouble: %v", rep.Failed, rep.Trouble)
	}
}

// memoryMutex is a lock in memory.
type memoryMutex chan struct{}

func (m memoryMutex) Lock(ctx context.Context) error {
	select {
	case m <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m memoryMutex) Unlock(context.Context) error {
	<-m
	return nil
}

func TestRace_CountsHoldsAndEndsItsWaiters(t *testing.T) {
	t.Parallel()
	m := make(memoryMutex, 1)
	f, err := race(testContext(t), []mutex{m, m, m}, 10*time.Millisecond, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if f[rate] < 1000 || f[p50] <= 0 {
		t.Errorf("figures: %v", f)
	}
	if len(m) != 0 {
		t.Error("the mutex is still locked after the race")
	}
	interrupted, interrupt := context.WithCancel(t.Context())
	interrupt()
	if _, err := race(interrupted, []mutex{m}, 0, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted race: %v", err)
	}
}
