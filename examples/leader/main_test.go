package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// asProgram is set in the environment of a process that runs the program instead of its
// tests.
const asProgram = "LEADER_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		go func() { // a process must not outlive its test
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		main()
	}
	ttl, drainTime = 6*time.Second, testTimeout
	goleak.VerifyTestMain(m)
}

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestRun_EachLeadsAfterTheOtherHasStopped(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := run(testContext(t), &out, nil); err != nil {
		t.Fatalf("%v, after\n%s", err, &out)
	}
	steps := regexp.MustCompile(`(?s)([ab])  SIGTERM.*([ab])  stops leading.*([ab])  leads.*([ab])  disconnected.*([ab])  stops leading: lock lost.*([ab])  answers /leader with 503.*([ab])  leads`)
	found := steps.FindStringSubmatch(out.String())
	if found == nil {
		t.Fatalf("the output lacks %v:\n%s", steps, &out)
	}
	if order := strings.Join(found[1:], ""); order != "aabbbbb" && order != "bbaaaaa" {
		t.Errorf("the instances acted in the order %s:\n%s", order, &out)
	}
}

// An instance is a service whose lock outlasts the test unless it is released.
type instance struct {
	*service
	stop  context.CancelFunc
	leads chan *locker.Lock // has the lock when it leads
	slow  chan struct{}     // a request of /slow is answered when it is closed
	ended chan error        // has what run has returned
}

func start(t *testing.T, etcd *embedtest.Server) *instance {
	t.Helper()
	client, err := locker.New(etcd.Client(t), locker.WithTTL(10*testTimeout))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(testContext(t))
	i := &instance{stop: stop, leads: make(chan *locker.Lock, 1), slow: make(chan struct{}), ended: make(chan error, 1)}
	i.service = &service{listener.Addr().String(), client, listener, http.NewServeMux(), func(ctx context.Context, lock *locker.Lock) error {
		i.leads <- lock
		<-ctx.Done()
		return nil
	}}
	i.routes.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush() // the header shows that the request is being answered
		select {
		case <-i.slow:
			_, _ = io.WriteString(w, "done")
		case <-r.Context().Done():
		}
	})
	go func() { i.ended <- i.run(ctx) }()
	return i
}

// receive waits for a value.
func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-testContext(t).Done():
		t.Fatalf("timed out waiting until %s", what)
		panic("unreachable")
	}
}

// get makes a request, whose body the caller has to read.
func get(t *testing.T, address, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// awaitQueue waits until n instances lead or wait for that.
func awaitQueue(t *testing.T, client *locker.Client, n int) {
	t.Helper()
	ctx, tick := testContext(t), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		entries, err := client.Queue(ctx, "leader")
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == n {
			return
		}
	}
}

func TestService_TheNextLeadsWhileTheFirstStillAnswersRequests(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	first := start(t, etcd)
	lock := receive(t, first.leads, "the first leads")
	slow := get(t, first.listener.Addr().String(), "/slow")
	second := start(t, etcd)
	awaitQueue(t, second.client, 2)
	first.stop()
	receive(t, second.leads, "the second leads")
	if err := lock.Err(); !errors.Is(err, locker.ErrReleased) {
		t.Errorf("the lock of the first: %v", err)
	}
	close(first.slow)
	if body, err := io.ReadAll(slow.Body); err != nil || string(body) != "done" {
		t.Errorf("the slow request was answered with %q, %v", body, err)
	}
	if err := receive(t, first.ended, "the first ends"); err != nil {
		t.Error(err)
	}
	second.stop()
	if err := receive(t, second.ended, "the second ends"); err != nil {
		t.Error(err)
	}
}

func TestService_LetsTheNextLeadWhenItCannotServe(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	first := start(t, etcd)
	receive(t, first.leads, "the first leads")
	_ = first.listener.Close()
	if err := receive(t, first.ended, "the first ends"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("run returned %v", err)
	}
	second := start(t, etcd)
	receive(t, second.leads, "the second leads")
	second.stop()
	if err := receive(t, second.ended, "the second ends"); err != nil {
		t.Error(err)
	}
}

// startProcess runs the program as a process of its own, which ends with the test at the
// latest, and returns its output line by line.
func startProcess(t *testing.T, args ...string) (*exec.Cmd, <-chan string) {
	t.Helper()
	cmd := exec.CommandContext(testContext(t), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=yes")
	cmd.Stderr = t.Output()
	if _, err := cmd.StdinPipe(); err != nil { // closed when this process ends
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() { // ends with the process
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	return cmd, lines
}

// awaitLine waits for a line that contains text, and returns what follows.
func awaitLine(t *testing.T, lines <-chan string, text string) string {
	t.Helper()
	for {
		line := receive(t, lines, "a process writes "+text)
		if _, after, found := strings.Cut(line, text); found {
			return after
		}
		if line == "" {
			t.Fatalf("a process has ended without writing %s", text)
		}
	}
}

func TestProgram_StopsAtSIGTERMAndLetsTheNextLead(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	args := []string{"-listen", "127.0.0.1:0", "-endpoints", strings.Join(etcd.Endpoints(), ",")}
	first, firstLines := startProcess(t, args...)
	address := awaitLine(t, firstLines, "serving on ")
	awaitLine(t, firstLines, "leading (token ")
	if status := get(t, address, "/leader").StatusCode; status != http.StatusOK {
		t.Errorf("/leader of the first answers %d", status)
	}
	second, secondLines := startProcess(t, args...)
	address = awaitLine(t, secondLines, "serving on ")
	if status := get(t, address, "/leader").StatusCode; status != http.StatusServiceUnavailable {
		t.Errorf("/leader of the second answers %d", status)
	}
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, firstLines, "not leading any more")
	awaitLine(t, secondLines, "leading (token ")
	if err := first.Wait(); err != nil {
		t.Errorf("the first: %v", err)
	}
	if status := get(t, address, "/leader").StatusCode; status != http.StatusOK {
		t.Errorf("/leader of the second answers %d", status)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitLine(t, secondLines, "not leading any more")
	if err := second.Wait(); err != nil {
		t.Errorf("the second: %v", err)
	}
}
