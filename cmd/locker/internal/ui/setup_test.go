package ui_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/ui"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestMain(m *testing.M) { locktest.Main(m) }

// bundle is a page, its etcd, and a client that locks what it shows.
type bundle struct {
	locktest.Bundle
	client *locker.Client
	other  *locker.Client
	url    string
	log    *record
}

// record is what the page has logged.
type record struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (r *record) Write(text []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(text)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func setup(t *testing.T, options ...func(*ui.Config)) bundle {
	t.Helper()
	b := bundle{Bundle: locktest.Setup(t), log: new(record)}
	b.client = b.Client(t, locker.WithProgram("orders"))
	b.other = b.Client(t, locker.WithProgram("reports"))
	b.url = b.serve(t, options...)
	return b
}

// serve serves another page of the same etcd, until the test ends.
func (b bundle) serve(t *testing.T, options ...func(*ui.Config)) string {
	t.Helper()
	etcd := b.Server.Client(t)
	config := ui.Config{
		Client: locktest.NewClient(t, etcd, locker.WithLogger(slog.New(slog.DiscardHandler))),
		Etcd:   etcd, Where: "the etcd of a test", Log: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	for _, option := range options {
		option(&config)
	}
	server, err := ui.New(locktest.Within(t), config)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := locktest.Receive(t, ended); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return "http://" + l.Addr().String()
}

// withRelease lets the page release locks.
func withRelease(c *ui.Config) { c.AllowRelease = true }

// answer is the answer to a request.
type answer struct {
	status int
	header http.Header
	text   string
}

// do sends a request.
func do(t *testing.T, method, address string, form url.Values, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(locktest.Within(t), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		if req.Header.Set(header[i], header[i+1]); header[i] == "Host" {
			req.Host = header[i+1]
		}
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func get(t *testing.T, address string, header ...string) answer {
	t.Helper()
	return do(t, "GET", address, nil, header...)
}

// state is what /state.json says.
type state struct {
	Total int
	Stale bool
	Names []struct {
		Name    string
		Waiters int
		Holders []entry
		Queue   []entry
	}
	Changes []struct {
		What  string
		Token int64
	}
}

type entry struct {
	State, Kind, Value, Lease string
	Limit                     int
	Token                     int64
	TTL                       *int64 `json:"ttl_left_seconds"`
	Owner                     *locker.Owner
	Exact                     bool `json:"since_exact"`
	Marks                     []string
}

func (b bundle) state(t *testing.T, query string) (s state) {
	t.Helper()
	a := get(t, b.url+"/state.json"+query)
	if err := json.Unmarshal([]byte(a.text), &s); err != nil || a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%v, %+v", err, a)
	}
	return s
}

// eventually waits until the state is as it should be.
func (b bundle) eventually(t *testing.T, query string, is func(state) bool) {
	t.Helper()
	locktest.Eventually(t, "the state is as it should be", func() bool { return is(b.state(t, query)) })
}

// lock locks a name.
func (b bundle) lock(t *testing.T, name, value string, opts ...locker.LockOption) *locker.Lock {
	t.Helper()
	l, err := b.client.Lock(locktest.Within(t), name, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wait waits for a name until the test ends, in the other client: those of one client wait
// inside it.
func (b bundle) wait(t *testing.T, name, value string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = b.other.Lock(ctx, name, value) // the test has ended
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

var secretField = regexp.MustCompile(`name="secret" value="([^"]+)"`)

// secret returns the secret of a page.
func secret(t *testing.T, form answer) string {
	t.Helper()
	match := secretField.FindStringSubmatch(form.text)
	if match == nil {
		t.Fatalf("no secret in the page: %d %s", form.status, form.text)
	}
	return match[1]
}
