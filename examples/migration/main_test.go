package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/postgres"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds every wait of a test.
const testTimeout = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until condition returns true. Otherwise it fails the test.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(testTimeout); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// bundle is what a test has: an etcd, a database, and a connection to look into it.
type bundle struct {
	t        *testing.T
	etcd     *embedtest.Server
	database *postgres.Database
	observer *pgx.Conn
}

// setup returns false if Postgres is not installed.
func setup(t *testing.T) (b bundle, ok bool) {
	t.Helper()
	b.t = t
	if b.database, ok = postgres.Start(t); !ok {
		return b, false
	}
	b.etcd = embedtest.Start(t)
	var err error
	if b.observer, err = pgx.Connect(testContext(t), b.database.URL()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.observer.Close(context.Background()) })
	return b, true
}

// count returns the number that a query has as its result.
func (b bundle) count(query string) (n int) {
	b.t.Helper()
	if err := b.observer.QueryRow(testContext(b.t), query).Scan(&n); err != nil {
		b.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// wantOnce fails the test unless the database looks as after each migration once.
func (b bundle) wantOnce() {
	b.t.Helper()
	for query, want := range map[string]int{
		"SELECT count(*) FROM goose_db_version WHERE version_id = 1": 1,
		"SELECT count(*) FROM goose_db_version WHERE version_id = 2": 1,
		"SELECT balance FROM accounts WHERE owner = 'alice'":         110,
		"SELECT balance FROM accounts WHERE owner = 'bob'":           210,
	} {
		if got := b.count(query); got != want {
			b.t.Errorf("%s: %d, want %d", query, got, want)
		}
	}
}

// urlOf returns the URL of the database for a host, whose sessions are marked with its name.
func (b bundle) urlOf(host string) string {
	b.t.Helper()
	u, err := url.Parse(b.database.URL())
	if err != nil {
		b.t.Fatal(err)
	}
	settings := u.Query()
	settings.Set("application_name", host)
	u.RawQuery = settings.Encode()
	return u.String()
}

func migrations(t *testing.T) fs.FS {
	t.Helper()
	fsys, err := fs.Sub(files, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func TestInstance_OfManyOneAppliesEachMigration(t *testing.T) {
	t.Parallel()
	b, ok := setup(t)
	if !ok {
		return
	}
	var out bytes.Buffer
	events := log.New(&out, "", 0)
	var g errgroup.Group
	for _, host := range []string{"web-1", "web-2", "web-3", "web-4", "web-5"} {
		g.Go(func() error {
			return instance(testContext(t), events, host, "migration/", b.etcd.Endpoints(), b.urlOf(host), migrations(t))
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	b.wantOnce()
	for text, want := range map[string]int{" applied 00001_accounts.sql\n": 1, " applied 00002_bonus.sql\n": 1, " found nothing to do\n": 4} {
		if got := strings.Count(out.String(), text); got != want {
			t.Errorf("%q comes %d times, want %d:\n%s", text, got, want, &out)
		}
	}
}

// lineWriter calls onLine for each line.
type lineWriter struct {
	mu     sync.Mutex // guards text
	text   strings.Builder
	onLine func(text string)
}

func (w *lineWriter) Write(text []byte) (int, error) {
	w.mu.Lock()
	w.text.Write(text)
	w.mu.Unlock()
	w.onLine(string(text))
	return len(text), nil
}

// wantNothingLeft fails the test if a run has left something behind.
func (b bundle) wantNothingLeft() {
	b.t.Helper()
	if n := b.count("SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'locker_example_%'"); n != 1 {
		b.t.Errorf("%d schemas are left, want that of the test", n)
	}
	keys, err := b.etcd.Client(b.t).Get(testContext(b.t), "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
	if err != nil || len(keys.Kvs) > 0 {
		b.t.Errorf("left in etcd: %v, %v", keys, err)
	}
}

func TestRun_ShowsItAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	b, ok := setup(t)
	if !ok {
		return
	}
	out := &lineWriter{onLine: func(string) {}}
	if err := run(testContext(t), out, b.etcd.Endpoints(), b.database.URL()); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out.text.String(), "each migration was applied once\n") {
		t.Errorf("the output is\n%s", &out.text)
	}
	b.wantNothingLeft()
}

func TestRun_NeedsNothingThatRuns(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := run(testContext(t), &out, nil, "")
	switch {
	case errors.Is(err, postgres.ErrNotInstalled) && os.Getenv("LOCKER_TOOLS") != "required":
		t.Log("nothing was checked:", err)
	case err != nil:
		t.Fatalf("%v, after\n%s", err, &out)
	}
}

func TestRun_LeavesNothingBehindWhenInterrupted(t *testing.T) {
	t.Parallel()
	b, ok := setup(t)
	if !ok {
		return
	}
	interrupted := errors.New("interrupted by the test")
	for _, text := range []string{"postgres  using", "starts", "applied 00001"} {
		ctx, cancel := context.WithCancelCause(testContext(t))
		out := &lineWriter{onLine: func(line string) {
			if strings.Contains(line, text) {
				cancel(interrupted)
			}
		}}
		// After the last of these lines there may be nothing left to interrupt.
		if err := run(ctx, out, b.etcd.Endpoints(), b.database.URL()); err == nil && text != "applied 00001" {
			t.Errorf("interrupted at %q, run returned no error:\n%s", text, &out.text)
		}
		cancel(nil)
		b.wantNothingLeft()
	}
}
