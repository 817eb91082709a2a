package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// longTTL is longer than any test waits: a record that is gone within it has been
// released.
const longTTL = 5 * time.Minute

// testMesh is the mesh of a test.
type testMesh struct {
	t        *testing.T
	etcd     *clientv3.Client
	observer *locker.Client
}

func newTestMesh(t *testing.T) *testMesh {
	t.Helper()
	etcd := embedtest.Start(t).Client(t)
	return &testMesh{t, etcd, newClient(t, etcd)}
}

func newClient(t *testing.T, etcd *clientv3.Client) *locker.Client {
	t.Helper()
	client, err := locker.New(etcd, locker.WithPrefix("mesh/"), locker.WithTTL(longTTL))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

// node runs a healthy node until the test ends.
func (m *testMesh) node(name string, cascade bool, settle time.Duration, needs ...string) *node {
	m.t.Helper()
	r := record{Address: name + ":80", Needs: needs, Cascade: cascade}
	n := newNode(newClient(m.t, m.etcd), name, r, settle, log.New(io.Discard, "", 0))
	n.health.setResult(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	m.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Errorf("%s ended with %v", name, err)
		}
	})
	return n
}

// await waits until exactly the given services hold their records.
func (m *testMesh) await(names ...string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), testTimeout)
	defer cancel()
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	for {
		holders, err := m.observer.List(ctx, servingPrefix)
		if err != nil {
			m.t.Fatalf("waited for %v to serve: %v", names, err)
		}
		var serving []string
		for _, holder := range holders {
			serving = append(serving, strings.TrimPrefix(holder.Name, servingPrefix))
		}
		if slices.Equal(serving, names) {
			return
		}
		<-ticks.C
	}
}

// history records the states of the services until the returned function is called.
func (m *testMesh) history() func() []locker.State {
	m.t.Helper()
	ctx, cancel := context.WithCancel(m.t.Context())
	var states []locker.State
	began, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for state, err := range m.observer.WatchPrefix(ctx, servingPrefix) {
			if err != nil {
				return
			}
			states = append(states, state)
			if len(states) == 1 {
				close(began)
			}
		}
	}()
	<-began // a service is already up
	return func() []locker.State {
		cancel()
		<-done
		return states
	}
}

func TestCascade_GoesDownAndComesBackInOrder(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	base := m.node("base", false, 0)
	m.node("middle", true, 50*time.Millisecond, "base")
	m.node("top", true, 0, "middle")
	m.node("apart", false, 0, "base")
	m.await("apart", "base", "middle", "top")
	history := m.history()

	base.health.setHealthy(false)
	m.await("apart")
	base.health.setHealthy(true)
	m.await("apart", "base", "middle", "top")

	isUp := make(map[string]bool)
	for _, state := range history() {
		name := strings.TrimPrefix(state.Name, servingPrefix)
		isUp[name] = state.Held
		need := map[string]string{"middle": "base", "top": "middle"}[name]
		if state.Held && need != "" && !isUp[need] {
			t.Errorf("%s is up at revision %d, before %s", name, state.Revision, need)
		}
	}
}

func TestCycle_GoesDownAndComesBack(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	base := m.node("base", true, 0)
	a := m.node("a", true, 0, "b", "base")
	m.node("b", true, 0, "c")
	m.node("c", true, 0, "a")
	all := []string{"a", "b", "base", "c"}
	m.await(all...)
	base.health.setHealthy(false)
	m.await()
	base.health.setHealthy(true)
	m.await(all...)
	a.health.setHealthy(false) // part of the cycle
	m.await("base")
	a.health.setHealthy(true)
	m.await(all...)
}

func TestCascade_FlappingTakesOthersDownOncePerSettleTime(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	const settle = time.Second
	base := m.node("base", false, 0)
	m.node("top", true, settle, "base")
	m.await("base", "top")
	history := m.history()
	began := time.Now()
	for range 20 {
		base.health.setHealthy(false)
		awaitServing(t, base, false)
		base.health.setHealthy(true)
		awaitServing(t, base, true)
	}
	flapped := time.Since(began)
	m.await("base", "top")
	ups, flaps := 0, 0
	for _, state := range history() {
		switch {
		case !state.Held:
		case state.Name == servingPrefix+"top":
			ups++
		default:
			flaps++
		}
	}
	// The first time is the initial state. A watch that is read late may skip others.
	if most := 2 + int(flapped/settle); ups > most {
		t.Errorf("top came up %d times in %v, want at most %d", ups, flapped, most)
	}
	if flaps < 3 {
		t.Errorf("base came up only %d times, too few for the test", flaps)
	}
}

// awaitServing waits until a node is serving, or is not.
func awaitServing(t *testing.T, n *node, want bool) {
	t.Helper()
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	limit := time.After(testTimeout)
	for n.report().Serving != want {
		select {
		case <-ticks.C:
		case <-limit:
			t.Fatalf("%s is serving: %v, want %v", n.name, !want, want)
		}
	}
}

func TestNode_IgnoresStateOlderThanItsHold(t *testing.T) {
	t.Parallel()
	n := newNode(nil, "a", record{}, 0, log.New(io.Discard, "", 0))
	n.health.setResult(nil)
	ready := locker.State{Holder: locker.Holder{Name: "ready/a", Value: record{}.String(), Token: 5}, Held: true}
	want := func(when string, cause error) {
		t.Helper()
		if _, got, _ := n.assess(); got != cause {
			t.Errorf("%s: %v, want %v", when, got, cause)
		}
	}
	want("initially", errNotReady)
	n.observe(ready)
	want("while another node holds the name", errNotReady)
	n.setReadyToken(6)
	want("with state older than the hold", errNotReady)
	ready.Token = 6
	n.observe(ready)
	want("with current state", nil)
	n.setReadyToken(0)
	want("after a loss", errNotReady)
}

func TestNode_StandbyOfTheSameNameTakesOver(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	first := m.node("a", false, 0)
	m.await("a")
	second := m.node("a", false, 0)
	if got := second.report(); got.Serving || !got.Healthy || got.Because != errNotReady.Error() {
		t.Errorf("report of the second node: %+v", got)
	}
	first.health.setHealthy(false)
	awaitServing(t, second, true)
	awaitServing(t, first, false)
	first.health.setHealthy(true)
	second.health.setHealthy(false)
	awaitServing(t, first, true)
}

func TestNode_AcquiresADeletedRecordAgain(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t).Client(t)
	observer := newClient(t, etcd)
	m := &testMesh{t, etcd, observer}
	output := newRecorder()
	defer func() {
		if t.Failed() {
			t.Logf("log of the node:\n%s", output)
		}
	}()
	client, err := locker.New(etcd, locker.WithPrefix("mesh/"), locker.WithTTL(3*time.Second)) // checks its record every second
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	n := newNode(client, "a", record{}, 0, log.New(output, "", 0))
	n.health.setResult(nil)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	m.await("a")
	held, err := observer.Get(ctx, "service/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Delete(ctx, "mesh/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	output.await(t, 0, "stopped serving") // because of its own watch, or of the loss that the library reports
	for state, err := range observer.Watch(ctx, "service/a") {
		if err != nil {
			t.Fatal(err)
		}
		if state.Held && state.Token > held.Token {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNode_EndsWhenEtcdRefuses(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t).Client(t)
	n := newNode(newClient(t, etcd), "a", record{Address: strings.Repeat("long ", 1<<20)}, 0, log.New(io.Discard, "", 0))
	n.health.setResult(nil)
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := n.run(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("with a record of 5 MB, run returned %v", err)
	}
}

func TestControl_ReportsAndSetsTheHealth(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	n := m.node("a", false, 0)
	m.await("a")
	awaitServing(t, n, true)
	server := httptest.NewServer(n.control())
	defer server.Close()
	ask := func(method, path, site string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Sec-Fetch-Site", site)
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if status, text := ask("GET", "/health", "none"); status != 200 || !strings.Contains(text, `"serving": true`) {
		t.Errorf("healthy: %d %s", status, text)
	}
	if status, _ := ask("POST", "/unhealthy", "cross-site"); status != 403 || n.health.gate.err() != nil {
		t.Errorf("a page of another site changed the health: %d", status)
	}
	if status, _ := ask("POST", "/unhealthy", "none"); status != 204 {
		t.Errorf("unhealthy: %d", status)
	}
	m.await()
	awaitServing(t, n, false)
	if status, text := ask("GET", "/health", "none"); status != 503 || !strings.Contains(text, errMarkedUnhealthy.Error()) {
		t.Errorf("unhealthy: %d %s", status, text)
	}
	if status, _ := ask("POST", "/healthy", "none"); status != 204 {
		t.Errorf("healthy: %d", status)
	}
	m.await("a")
}

// logFunc is called with each entry of a log.
type logFunc func(entry string)

func (l logFunc) Write(text []byte) (int, error) {
	l(string(text))
	return len(text), nil
}

func TestNode_ReleasesItsRecordBeforeLogging(t *testing.T) {
	t.Parallel()
	m := newTestMesh(t)
	unblock := make(chan struct{})
	n := m.node("a", false, 0)
	n.log.SetOutput(logFunc(func(entry string) {
		if strings.Contains(entry, "stopped serving: "+errMarkedUnhealthy.Error()) {
			<-unblock // a slow reader of the log
		}
	}))
	m.await("a")
	awaitServing(t, n, true)
	defer close(unblock)
	n.health.setHealthy(false)
	m.await()
}

func TestNode_LogsWithoutHoldingItsMutex(t *testing.T) {
	t.Parallel()
	var n *node
	var logged []string
	n = newNode(nil, "a", record{Needs: []string{"b"}}, 0, log.New(logFunc(func(entry string) {
		logged = append(logged, entry)
		if !n.mu.TryLock() {
			t.Errorf("the mutex is held while %q is logged", entry)
			return
		}
		n.mu.Unlock()
	}), "", 0))
	for _, name := range []string{"ready/b", "service/b"} {
		n.observe(locker.State{Holder: locker.Holder{Name: name, Value: record{Address: "b\x1b[2J:80"}.String(), Token: 5}, Held: true})
	}
	n.observe(locker.State{Holder: locker.Holder{Name: "service/b"}})
	want := []string{"dependency b is up at b?[2J:80\n", "dependency b is down; continuing without it\n"}
	if !slices.Equal(logged, want) {
		t.Errorf("logged %q, want %q", logged, want)
	}
}
