// Package postgres gives examples and their tests a database in a Postgres that it starts, or
// in one that runs elsewhere.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNotInstalled reports that there is no Postgres that could be started.
var ErrNotInstalled = errors.New("no Postgres is installed (Debian: apt-get install postgresql; or give -postgres URL)")

const (
	startTimeout = 2 * time.Minute  // of Start
	closeTimeout = 10 * time.Second // of Close, for a Postgres that runs elsewhere
)

// Database is a schema of its own, so that nothing else is touched. Its methods are safe for
// concurrent use, except Close.
type Database struct {
	server *server // nil if Postgres runs elsewhere
	whole  string  // URL of the database in which the schema is
	schema string
	url    string
}

// Open creates a schema in the Postgres at rawURL. If that is empty, it starts a Postgres for
// this program, with its data in a temporary directory and without any address that others could
// connect to. Open blocks until the schema is there, or ctx ends; ctx bounds nothing else. The
// caller must call Close. After an error nothing is left, except perhaps the schema if Postgres
// runs elsewhere and its answer was lost.
//
// Errors: ErrNotInstalled; the cause of ctx; those of the operating system and of Postgres.
func Open(ctx context.Context, rawURL string) (_ *Database, err error) {
	d := &Database{whole: rawURL, schema: fmt.Sprintf("locker_example_%08x", rand.Uint32())}
	if rawURL == "" {
		if d.server, err = startServer(ctx); err != nil {
			return nil, err
		}
		d.whole = d.server.url()
	}
	defer func() {
		if err != nil && d.server != nil {
			err = errors.Join(err, d.server.stop())
		}
	}()
	u, err := url.Parse(d.whole)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		// Without the URL, which may have a password.
		return nil, errors.New("invalid URL of a Postgres: want one such as postgres://user:password@localhost/database")
	}
	settings := u.Query()
	settings.Set("search_path", d.schema)
	u.RawQuery = settings.Encode()
	d.url = u.String()
	return d, d.exec(ctx, "CREATE SCHEMA "+d.schema)
}

// Start is Open for a test, which fails if it cannot be done, and closes the database when it
// ends. If Postgres is not installed, Start returns false, unless LOCKER_TOOLS is "required".
func Start(tb testing.TB) (_ *Database, ok bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), startTimeout)
	defer cancel()
	d, err := Open(ctx, "")
	switch {
	case errors.Is(err, ErrNotInstalled) && os.Getenv("LOCKER_TOOLS") != "required":
		tb.Log("nothing was checked:", err)
		return nil, false
	case err != nil:
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d, true
}

// URL returns the URL of the schema, for pgx.
func (d *Database) URL() string { return d.url }

// Where describes where Postgres runs.
func (d *Database) Where() string {
	if d.server != nil {
		return "running for this program (-postgres selects one of your own)"
	}
	return "using a schema of its own, " + d.schema
}

// Close removes the schema and everything in it, or ends the Postgres that Open has started. It
// blocks until that is done, or Postgres does not answer for 10 s.
func (d *Database) Close() error {
	if d.server != nil {
		return d.server.stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return d.exec(ctx, "DROP SCHEMA "+d.schema+" CASCADE")
}

func (d *Database) exec(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, d.whole)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	_ = conn.Close(ctx) // the statement is done, or not
	return err
}
