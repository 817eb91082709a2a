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

// longTTL is more than any test waits: what goes within it has been given up.
const longTTL = 5 * time.Minute

// village is a mesh of a test.
type village struct {
	t        *testing.T
	etcd     *clientv3.Client
	observer *locker.Client
}

func newVillage(t *testing.T) *village {
	t.Helper()
	etcd := embedtest.Start(t).Client(t)
	return &village{t, etcd, newClient(t, etcd)}
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

// node runs a node that is well, until the test ends.
func (v *village) node(name string, cascade bool, settle time.Duration, needs ...string) *node {
	v.t.Helper()
	r := record{Address: name + ":80", Needs: needs, Cascade: cascade}
	n := newNode(newClient(v.t, v.etcd), name, r, settle, log.New(io.Discard, "", 0))
	n.health.found(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	v.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			v.t.Errorf("%s ended with %v", name, err)
		}
	})
	return n
}

// await waits until exactly these services hold their record.
func (v *village) await(names ...string) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), patience)
	defer cancel()
	ticks := time.NewTicker(20 * time.Millisecond)
	defer ticks.Stop()
	for {
		holders, err := v.observer.List(ctx, servingPrefix)
		if err != nil {
			v.t.Fatalf("the services are not %v: %v", names, err)
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

// history collects the states of the services until the function it returns is called.
func (v *village) history() func() []locker.State {
	v.t.Helper()
	ctx, cancel := context.WithCancel(v.t.Context())
	var states []locker.State
	began, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for state, err := range v.observer.WatchPrefix(ctx, servingPrefix) {
			if err != nil {
				return
			}
			states = append(states, state)
			if len(states) == 1 {
				close(began)
			}
		}
	}()
	<-began // there is a service that is up already
	return func() []locker.State {
		cancel()
		<-done
		return states
	}
}

func TestACascadeGoesDownAndComesBackInOrder(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	base := v.node("base", false, 0)
	v.node("middle", true, 50*time.Millisecond, "base")
	v.node("top", true, 0, "middle")
	v.node("apart", false, 0, "base")
	v.await("apart", "base", "middle", "top")
	history := v.history()

	base.health.turn(false)
	v.await("apart")
	base.health.turn(true)
	v.await("apart", "base", "middle", "top")

	up := make(map[string]bool)
	for _, state := range history() {
		name := strings.TrimPrefix(state.Name, servingPrefix)
		up[name] = state.Held
		need := map[string]string{"middle": "base", "top": "middle"}[name]
		if state.Held && need != "" && !up[need] {
			t.Errorf("%s is up at revision %d before %s is", name, state.Revision, need)
		}
	}
}

func TestACircleGoesDownAndComesBack(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	base := v.node("base", true, 0)
	a := v.node("a", true, 0, "b", "base")
	v.node("b", true, 0, "c")
	v.node("c", true, 0, "a")
	all := []string{"a", "b", "base", "c"}
	v.await(all...)
	base.health.turn(false)
	v.await()
	base.health.turn(true)
	v.await(all...)
	a.health.turn(false) // itself of the circle
	v.await("base")
	a.health.turn(true)
	v.await(all...)
}

func TestANeedThatFlapsTakesOthersDownOnce(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	const settle = time.Second
	base := v.node("base", false, 0)
	v.node("top", true, settle, "base")
	v.await("base", "top")
	history := v.history()
	began := time.Now()
	for range 20 {
		base.health.turn(false)
		awaitServing(t, base, false)
		base.health.turn(true)
		awaitServing(t, base, true)
	}
	flapped := time.Since(began)
	v.await("base", "top")
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
	// The first up is that of the beginning. A watch that is read late may skip others.
	if most := 2 + int(flapped/settle); ups > most {
		t.Errorf("top came up %d times in %v, want at most %d", ups, flapped, most)
	}
	if flaps < 3 {
		t.Errorf("base came up only %d times, which proves nothing", flaps)
	}
}

// awaitServing waits until a node serves, or does not.
func awaitServing(t *testing.T, n *node, want bool) {
	t.Helper()
	ticks := time.NewTicker(5 * time.Millisecond)
	defer ticks.Stop()
	limit := time.After(patience)
	for n.report().Serving != want {
		select {
		case <-ticks.C:
		case <-limit:
			t.Fatalf("%s serves: %v", n.name, !want)
		}
	}
}

func TestANodeBelievesNoPictureThatIsOlderThanItsHold(t *testing.T) {
	t.Parallel()
	n := newNode(nil, "a", record{}, 0, log.New(io.Discard, "", 0))
	n.health.found(nil)
	ready := locker.State{Holder: locker.Holder{Name: "ready/a", Value: record{}.String(), Token: 5}, Held: true}
	want := func(about string, cause error) {
		t.Helper()
		if _, got, _ := n.look(); got != cause {
			t.Errorf("%s: %v, want %v", about, got, cause)
		}
	}
	want("at first", errNotReady)
	n.learn(ready)
	want("while another holds it", errNotReady)
	n.holds(6)
	want("with a picture of before", errNotReady)
	ready.Token = 6
	n.learn(ready)
	want("with one of now", nil)
	n.holds(0)
	want("after it was lost", errNotReady)
}

func TestAnotherOfTheSameNameTakesOver(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	first := v.node("a", false, 0)
	v.await("a")
	second := v.node("a", false, 0)
	if got := second.report(); got.Serving || !got.Healthy || got.Because != errNotReady.Error() {
		t.Errorf("the second: %+v", got)
	}
	first.health.turn(false)
	awaitServing(t, second, true)
	awaitServing(t, first, false)
	first.health.turn(true)
	second.health.turn(false)
	awaitServing(t, first, true)
}

func TestARecordThatWasTakenAwayIsHeldAgain(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t).Client(t)
	observer := newClient(t, etcd)
	v := &village{t, etcd, observer}
	said := newTranscript()
	defer func() {
		if t.Failed() {
			t.Logf("it has said:\n%s", said)
		}
	}()
	client, err := locker.New(etcd, locker.WithPrefix("mesh/"), locker.WithTTL(3*time.Second)) // looks after its record each second
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	n := newNode(client, "a", record{}, 0, log.New(said, "", 0))
	n.health.found(nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.run(ctx) }()
	v.await("a")
	held, err := observer.Get(ctx, "service/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Delete(ctx, "mesh/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	said.await(t, 0, "stops") // by what it sees of itself, or told by the library
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

func TestANodeEndsWhenEtcdRefuses(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t).Client(t)
	n := newNode(newClient(t, etcd), "a", record{Address: strings.Repeat("long ", 1<<20)}, 0, log.New(io.Discard, "", 0))
	n.health.found(nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.run(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("with a record of 5 MB it ended with %v", err)
	}
}

func TestTheControlPortTellsAndSwitches(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	n := v.node("a", false, 0)
	v.await("a")
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
	if status, _ := ask("POST", "/unhealthy", "cross-site"); status != 403 || n.health.gate.why() != nil {
		t.Errorf("the page of another site switched it: %d", status)
	}
	if status, _ := ask("POST", "/unhealthy", "none"); status != 204 {
		t.Errorf("unhealthy: %d", status)
	}
	v.await()
	awaitServing(t, n, false)
	if status, text := ask("GET", "/health", "none"); status != 503 || !strings.Contains(text, errSwitchedOff.Error()) {
		t.Errorf("unhealthy: %d %s", status, text)
	}
	if status, _ := ask("POST", "/healthy", "none"); status != 204 {
		t.Errorf("healthy: %d", status)
	}
	v.await("a")
}

// listener is called with each line of a log.
type listener func(line string)

func (l listener) Write(text []byte) (int, error) {
	l(string(text))
	return len(text), nil
}

func TestARecordIsGivenUpBeforeTheNodeSaysSo(t *testing.T) {
	t.Parallel()
	v := newVillage(t)
	heard := make(chan struct{})
	n := v.node("a", false, 0)
	n.log.SetOutput(listener(func(line string) {
		if strings.Contains(line, "stops serving: "+errSwitchedOff.Error()) {
			<-heard // whoever reads the log takes his time
		}
	}))
	v.await("a")
	awaitServing(t, n, true)
	defer close(heard)
	n.health.turn(false)
	v.await()
}

func TestNothingWaitsForTheLogOfWhatIsNeeded(t *testing.T) {
	t.Parallel()
	var n *node
	var said []string
	n = newNode(nil, "a", record{Needs: []string{"b"}}, 0, log.New(listener(func(line string) {
		said = append(said, line)
		if !n.mu.TryLock() {
			t.Errorf("what guards the picture is held while %q is printed", line)
			return
		}
		n.mu.Unlock()
	}), "", 0))
	for _, name := range []string{"ready/b", "service/b"} {
		n.learn(locker.State{Holder: locker.Holder{Name: name, Value: record{Address: "b\x1b[2J:80"}.String(), Token: 5}, Held: true})
	}
	n.learn(locker.State{Holder: locker.Holder{Name: "service/b"}})
	want := []string{"b, which it needs, is up at b?[2J:80\n", "b, which it needs, is down; goes on without it\n"}
	if !slices.Equal(said, want) {
		t.Errorf("it said %q, want %q", said, want)
	}
}
