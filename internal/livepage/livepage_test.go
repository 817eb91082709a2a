package livepage_test

import (
	"bufio"
	"context"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2/internal/livepage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counter is a state: a number that grows.
type counter struct {
	mu      sync.Mutex // guards what follows
	n       int
	changed chan struct{}
}

func newCounter() *counter { return &counter{changed: make(chan struct{})} }

func (c *counter) grow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *counter) update(_ *http.Request, seen string) (livepage.Update, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := livepage.Update{Version: strconv.Itoa(c.n), Changed: c.changed}
	if u.Version != seen {
		u.Data = c.n
	}
	return u, nil
}

// serve serves a stream of c.
func serve(t *testing.T, c *counter) string {
	t.Helper()
	stream := &livepage.Stream{Update: c.update, Age: func() time.Duration { return 1500 * time.Millisecond }}
	server := httptest.NewServer(stream)
	t.Cleanup(server.Close)
	return server.URL
}

// open opens a stream and returns a function that reads the next event.
func open(t *testing.T, url string, header ...string) (next func() (event, id, data string), status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		resp.Body.Close()
		transport.CloseIdleConnections()
	})
	lines := bufio.NewScanner(resp.Body)
	return func() (event, id, data string) {
		t.Helper()
		for lines.Scan() {
			field, value, _ := strings.Cut(lines.Text(), ": ")
			switch field {
			case "event":
				event = value
			case "id":
				id = value
			case "data":
				return event, id, value
			}
		}
		t.Fatalf("the stream has ended: %v", lines.Err())
		return "", "", ""
	}, resp.StatusCode
}

func TestStream_SendsTheNewestStateThenEachChange(t *testing.T) {
	t.Parallel()
	c := newCounter()
	c.grow()
	next, _ := open(t, serve(t, c))
	if event, id, data := next(); event != "update" || id != "1" || data != "1" {
		t.Errorf("first event: %s %s %s", event, id, data)
	}
	if event, _, data := next(); event != "pulse" || data != "1500" {
		t.Errorf("second event: %s %s", event, data)
	}
	c.grow()
	if event, id, data := next(); event != "update" || id != "2" || data != "2" {
		t.Errorf("third event: %s %s %s", event, id, data)
	}
}

func TestStream_SendsNothingThatTheClientHasSeen(t *testing.T) {
	t.Parallel()
	c := newCounter()
	c.grow()
	url := serve(t, c)
	for about, next := range map[string]func() (event, id, data string){
		"by header": first(open(t, url+"?after=0", "Last-Event-ID", "1")),
		"by query":  first(open(t, url+"?after=1")),
	} {
		if event, _, _ := next(); event != "pulse" {
			t.Errorf("%s: the first event is %s", about, event)
		}
	}
	if event, _, data := first(open(t, url+"?after=other"))(); event != "update" || data != "1" {
		t.Errorf("after an unknown version: %s %s", event, data)
	}
}

func first(next func() (event, id, data string), _ int) func() (event, id, data string) { return next }

func TestStream_ManyChangesAreNoFlood(t *testing.T) {
	t.Parallel()
	c := newCounter()
	next, _ := open(t, serve(t, c))
	next()
	began := time.Now()
	const changes = 10000
	for range changes {
		c.grow()
	}
	updates, last := 0, ""
	for last != strconv.Itoa(changes) {
		if event, _, data := next(); event == "update" {
			updates, last = updates+1, data
		}
	}
	if most := 2 + int(time.Since(began)/livepage.UpdateInterval); updates > most {
		t.Errorf("%d updates in %v", updates, time.Since(began))
	}
}

func TestStream_RefusesMoreClientsThanItServes(t *testing.T) {
	t.Parallel()
	url := serve(t, newCounter())
	for i := range livepage.MaxStreams {
		if _, status := open(t, url); status != http.StatusOK {
			t.Fatalf("stream %d: %d", i, status)
		}
	}
	if _, status := open(t, url); status != http.StatusServiceUnavailable {
		t.Errorf("one more: %d", status)
	}
}

func TestHandler_SetsStrictHeadersAndRefusesOtherSites(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	livepage.Assets(mux, nil)
	mux.HandleFunc("POST /", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	for forms, target := range map[bool]string{true: "form-action 'self'", false: "form-action 'none'"} {
		handler := livepage.Handler(mux, forms)
		for _, path := range []string{"/live.js", "/live.css", "/nothing"} {
			answer := httptest.NewRecorder()
			handler.ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
			policy := answer.Header().Get("Content-Security-Policy")
			for _, want := range []string{"default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", target} {
				if !strings.Contains(policy, want) {
					t.Errorf("%s: %q is not in the policy %q", path, want, policy)
				}
			}
			if answer.Header().Get("X-Content-Type-Options") != "nosniff" || answer.Header().Get("Cache-Control") == "" {
				t.Errorf("%s: %v", path, answer.Header())
			}
		}
		for site, want := range map[string]int{"same-origin": 204, "none": 204, "cross-site": 403, "same-site": 403} {
			answer, req := httptest.NewRecorder(), httptest.NewRequest("POST", "/", nil)
			req.Header.Set("Sec-Fetch-Site", site)
			if handler.ServeHTTP(answer, req); answer.Code != want {
				t.Errorf("POST from %s: %d, want %d", site, answer.Code, want)
			}
		}
	}
}

func TestServe_EndsWithItsContextThoughAStreamIsOpen(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := newCounter()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- livepage.Serve(ctx, l, &livepage.Stream{Update: c.update, Age: func() time.Duration { return 0 }})
	}()
	next, _ := open(t, "http://"+l.Addr().String())
	next()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Serve does not return")
	}
	if err := livepage.Serve(t.Context(), l, http.NotFoundHandler()); err == nil {
		t.Error("Serve on a closed listener returned nil")
	}
}

func TestStream_OutlivesTheTimeoutsOfItsServer(t *testing.T) {
	t.Parallel()
	c := newCounter()
	server := httptest.NewUnstartedServer(&livepage.Stream{Update: c.update, Age: func() time.Duration { return 0 }})
	server.Config.ReadTimeout, server.Config.WriteTimeout = livepage.PulseInterval/2, livepage.PulseInterval/2
	server.Start()
	t.Cleanup(server.Close)
	next, _ := open(t, server.URL)
	next() // the update
	for range 3 {
		if event, _, _ := next(); event != "pulse" {
			t.Errorf("the event is %s", event)
		}
	}
}

func TestServe_GivesUpAClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 16<<20) // more than connections keep
	page := template.Must(template.New("page").Parse("{{.}}"))
	for about, answer := range map[string]func(http.ResponseWriter){
		"a page": func(w http.ResponseWriter) { livepage.WritePage(w, http.StatusOK, page, "page", large) },
		"JSON":   func(w http.ResponseWriter) { livepage.WriteJSON(w, http.StatusOK, large) },
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			answered := make(chan struct{})
			server := serveUntilTheEnd(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				defer close(answered)
				answer(w)
			}))
			client, err := net.Dial("tcp", server)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			select {
			case <-answered:
			case <-time.After(time.Minute):
				t.Error("the handler still waits for the client")
			}
			if n, err := io.Copy(io.Discard, client); n > int64(len(large)) && err == nil {
				t.Errorf("%d bytes were sent to a client that did not read", n)
			}
		})
	}
}

// serveUntilTheEnd serves until the test ends, and returns the address.
func serveUntilTheEnd(t *testing.T, handler http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- livepage.Serve(ctx, l, handler) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestHealth_DependsOnTheAge(t *testing.T) {
	t.Parallel()
	for age, want := range map[time.Duration]int{0: 200, livepage.StaleAfter: 200, livepage.StaleAfter + 1: 503} {
		answer := httptest.NewRecorder()
		livepage.Health(answer, age)
		text, _ := io.ReadAll(answer.Body)
		if answer.Code != want || !strings.Contains(string(text), "ageSeconds") {
			t.Errorf("age %v: %d %s", age, answer.Code, text)
		}
	}
}
