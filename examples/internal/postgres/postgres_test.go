package postgres_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2/examples/internal/postgres"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testTimeout = 2 * time.Minute

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// query connects, and returns the text that a query has as its result.
func query(t *testing.T, url, sql string) (text string, err error) {
	t.Helper()
	conn, err := pgx.Connect(testContext(t), url)
	if err != nil {
		return "", err
	}
	defer conn.Close(testContext(t))
	err = conn.QueryRow(testContext(t), sql).Scan(&text)
	return text, err
}

func TestStart_IsAPostgresThatNobodyElseCanReach(t *testing.T) {
	t.Parallel()
	d, ok := postgres.Start(t)
	if !ok {
		return
	}
	for sql, want := range map[string]string{
		"SHOW listen_addresses":                        "",
		"SHOW search_path":                             "locker_example_",
		"SELECT current_schema()":                      "locker_example_",
		"SELECT (pg_stat_file('.')).isdir::text":       "true",
		"SELECT 'é' || current_setting('fsync', true)": "éoff",
	} {
		if got, err := query(t, d.URL(), sql); err != nil || !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, %v, want %q", sql, got, err, want)
		}
	}
	dir, err := query(t, d.URL(), "SHOW unix_socket_directories")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", dir, info, err)
	}
}

func TestClose_LeavesNothingBehind(t *testing.T) {
	t.Parallel()
	server, ok := postgres.Start(t)
	if !ok {
		return
	}
	const schemas = "SELECT string_agg(nspname, ' ' ORDER BY nspname) FROM pg_namespace WHERE nspname LIKE 'locker_example_%'"
	before, err := query(t, server.URL(), schemas)
	if err != nil {
		t.Fatal(err)
	}

	// A schema in a Postgres that runs elsewhere.
	d, err := postgres.Open(testContext(t), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	if during, err := query(t, d.URL(), schemas); err != nil || len(strings.Fields(during)) != 2 {
		t.Errorf("schemas: %q, %v", during, err)
	}
	if _, err := query(t, d.URL(), "CREATE TABLE t (n int)"); !errors.Is(err, pgx.ErrNoRows) {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if after, err := query(t, server.URL(), schemas); err != nil || after != before {
		t.Errorf("schemas: %q, %v, want %q", after, err, before)
	}

	// A Postgres of this program, while somebody is connected.
	if d, err = postgres.Open(testContext(t), ""); err != nil {
		t.Fatal(err)
	}
	data, err := query(t, d.URL(), "SHOW data_directory")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(testContext(t), d.URL())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := conn.Ping(testContext(t)); err == nil {
		t.Error("Postgres still answers")
	}
	if _, err := os.Stat(filepath.Dir(data)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", filepath.Dir(data), err)
	}
}

func TestOpen_ReportsWhyThereIsNoDatabase(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"nonsense":                        "want one such as postgres://",
		"postgres://u@127.0.0.1:1/d":      "refused",
		"postgres:///d?host=/nonexistent": "no such file",
	} {
		if _, err := postgres.Open(testContext(t), url); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("canceled by the test"))
	_, err := postgres.Open(canceled, "")
	if err == nil || !errors.Is(err, context.Cause(canceled)) && !errors.Is(err, postgres.ErrNotInstalled) {
		t.Errorf("with a canceled context: %v", err)
	}
}
