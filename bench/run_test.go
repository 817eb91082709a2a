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

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 4 * time.Minute // a first test compiles etcd

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestARowIsMeasuredOnARealEtcdFromEndToEnd(t *testing.T) {
	out := filepath.Join(t.TempDir(), "results")
	var stdout, stderr bytes.Buffer
	err := command(within(t), []string{"-quick", "-row", "P1", "-rounds", "1", "-out", out}, &stdout, &stderr)
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
	for _, side := range []string{floor, ours, mutual} {
		if m := rep.Results[0].Sides[side]; m == nil || m.Median <= 0 || len(m.Rounds) != 1 {
			t.Errorf("%s: %+v", side, m)
		}
	}
}

func TestAnInterruptedRunLeavesNothingBehind(t *testing.T) {
	cache := t.TempDir()
	if real, err := os.UserCacheDir(); err == nil { // etcd need not be compiled again
		_ = os.Mkdir(filepath.Join(cache, "locker"), 0o700)
		_ = os.Symlink(filepath.Join(real, "locker", "etcd-"+etcdVersion), filepath.Join(cache, "locker", "etcd-"+etcdVersion))
	}
	t.Setenv("XDG_CACHE_HOME", cache)
	ctx, interrupt := context.WithCancel(within(t))
	// The first line of a run comes when its first row is done.
	err := command(ctx, []string{"-quick", "-rounds", "1", "-row", "P1,P3,P4,P8"}, os.Stdout, writerFunc(func([]byte) { interrupt() }))
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the run ended with %v", err)
	}
	left, err := filepath.Glob(filepath.Join(cache, "locker", "bench-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// writerFunc is called for what is written.
type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

func TestWhatTheCommandLineGetsWrongIsToldInPlainWords(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-row", "P99"}, {"P4"}, {"-rounds", "x"}} {
		if err := command(within(t), args, &bytes.Buffer{}, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

// fake returns a side that notes its turns.
func fake(name string, peer bool, turns *[]string, err error) side {
	return side{name: name, peer: peer, open: func(context.Context, *arena) (round, error) {
		return func(context.Context) (figures, error) {
			*turns = append(*turns, name)
			return figures{rate: 1}, err
		}, nil
	}}
}

func fakeRunner() *runner {
	return &runner{
		scale: scale{rounds: 3}, endpoints: []string{"nowhere"}, version: "none", id: "0000",
		peers: peerAddresses{redis: "nowhere"}, progress: newProgress(&bytes.Buffer{}),
	}
}

func TestTheSidesTakeTurns(t *testing.T) {
	t.Parallel()
	var turns []string
	w := row{id: "P0", sides: []side{fake(ours, false, &turns, nil), fake(mutual, false, &turns, nil)}, lines: []line{{figure: rate, against: mutual}}}
	results, err := fakeRunner().run(within(t), w)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{ours, mutual, ours, mutual, ours, mutual}; !slices.Equal(turns, want) {
		t.Errorf("turns: %v", turns)
	}
	if len(results) != 1 || results[0].Ratio != 1 {
		t.Errorf("results: %+v", results)
	}
}

func TestAPeerThatFailsIsToldAndDoesNotEndTheRun(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var turns []string
	r := fakeRunner()
	w := row{id: "P0", sides: []side{fake(ours, false, &turns, nil), fake("redislock", true, &turns, broken)}, lines: []line{{figure: rate}}}
	if _, err := r.run(within(t), w); err != nil {
		t.Fatal(err)
	}
	if want := []string{ours, "redislock", ours, ours}; !slices.Equal(turns, want) {
		t.Errorf("turns: %v", turns)
	}
	if len(r.trouble) != 1 || !strings.Contains(r.trouble[0], "broken") {
		t.Errorf("told: %v", r.trouble)
	}
	w.sides[0] = fake(ours, false, &turns, broken)
	if _, err := r.run(within(t), w); !errors.Is(err, broken) {
		t.Errorf("a side that fails: %v", err)
	}
}

func TestARowThatFailsIsToldAndTheOthersAreMeasured(t *testing.T) {
	t.Parallel()
	var turns []string
	r := fakeRunner()
	r.etcd.Dir = t.TempDir()
	lines := []line{{figure: rate}}
	rep, err := r.report(within(t), []row{
		{id: "P0", sides: []side{fake(ours, false, &turns, errors.New("broken"))}, lines: lines},
		{id: "P1", sides: []side{fake(ours, false, &turns, nil)}, lines: lines},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Results) != 1 || rep.Results[0].Row != "P1" {
		t.Errorf("results: %+v", rep.Results)
	}
	if !slices.Equal(rep.Failed, []string{"P0"}) || len(rep.Trouble) != 1 {
		t.Errorf("failed: %v, told: %v", rep.Failed, rep.Trouble)
	}
}

// memoryMutex is a lock without a server.
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

func TestARaceCountsHoldsAndEndsThoseWhoWait(t *testing.T) {
	t.Parallel()
	m := make(memoryMutex, 1)
	f, err := race(within(t), []mutex{m, m, m}, 10*time.Millisecond, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if f[rate] < 1000 || f[p50] <= 0 {
		t.Errorf("figures: %v", f)
	}
	if len(m) != 0 {
		t.Error("it is still locked")
	}
	interrupted, interrupt := context.WithCancel(t.Context())
	interrupt()
	if _, err := race(interrupted, []mutex{m}, 0, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
