package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/postgres"
)

func TestMain(m *testing.M) {
	ttl = 8 * time.Second
	goleak.VerifyTestMain(m)
}

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

func connect(t *testing.T, database *postgres.Database) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(testContext(t), database.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func count(t *testing.T, conn *pgx.Conn, query string) (n int) {
	t.Helper()
	if err := conn.QueryRow(testContext(t), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// lineWriter calls onLine for each line.
type lineWriter struct {
	bytes.Buffer
	onLine func(text string)
}

func (w *lineWriter) Write(text []byte) (int, error) {
	w.onLine(string(text))
	return w.Buffer.Write(text)
}

// wantNothingLeft fails the test if a run has left something behind, besides the schema of the test.
func wantNothingLeft(t *testing.T, etcd *clientv3.Client, observer *pgx.Conn) {
	t.Helper()
	if n := count(t, observer, "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'locker_example_%'"); n != 1 {
		t.Errorf("%d schemas are left, want that of the test", n)
	}
	eventually(t, "etcd is empty", func() bool { // what a slow machine did not remove runs out
		keys, err := etcd.Get(testContext(t), "\x00", clientv3.WithFromKey(), clientv3.WithKeysOnly())
		return err == nil && len(keys.Kvs) == 0
	})
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

func TestRun_LeavesNothingBehind(t *testing.T) {
	t.Parallel()
	database, ok := postgres.Start(t)
	if !ok {
		return
	}
	server, observer := embedtest.Start(t), connect(t, database)
	etcd := server.Client(t)
	interrupted := errors.New("interrupted by the test")
	for _, last := range []string{"postgres  using", "alpha     holds", "network", "beta      has written", "postgres  has"} {
		ctx, cancel := context.WithCancelCause(testContext(t))
		out := &lineWriter{onLine: func(line string) {
			if strings.HasPrefix(line, last) {
				cancel(interrupted)
			}
		}}
		err := run(ctx, out, server.Endpoints(), database.URL())
		cancel(nil)
		if complete := last == "postgres  has"; complete != (err == nil) || !strings.Contains(out.String(), last) {
			t.Errorf("interrupted at %q, run returned %v, after\n%s", last, err, out)
		}
		wantNothingLeft(t, etcd, observer)
	}
}
