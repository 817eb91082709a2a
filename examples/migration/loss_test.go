package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// outcome is what migrate has returned.
type outcome struct {
	applied []*goose.MigrationResult
	err     error
}

// start runs migrate in the background. The function that it returns waits for the outcome.
func (b bundle) start(client *locker.Client, host string, db *sql.DB, fsys fs.FS) (wait func() outcome) {
	b.t.Helper()
	provider, err := newProvider(db, fsys)
	if err != nil {
		b.t.Fatal(err)
	}
	done := make(chan outcome, 1)
	ctx := testContext(b.t)
	go func() {
		applied, err := migrate(ctx, client, host, provider) // returns when ctx ends
		done <- outcome{applied, err}
	}()
	return func() outcome {
		b.t.Helper()
		select {
		case result := <-done:
			return result
		case <-ctx.Done():
			b.t.Fatalf("the instance %s does not end", host)
			return outcome{}
		}
	}
}

// client returns a client whose connection to etcd can be cut.
func (b bundle) client(ttl time.Duration) (*locker.Client, *embedtest.Proxy) {
	b.t.Helper()
	network := b.etcd.Proxy(b.t)
	client, err := locker.New(network.Client(b.t), locker.WithTTL(ttl))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		network.Heal() // so that the lease can be revoked
		_ = client.Close()
	})
	return client, network
}

func (b bundle) open(host string) *sql.DB {
	b.t.Helper()
	db, err := sql.Open("pgx", b.urlOf(host))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = db.Close() })
	return db
}

// queued waits until n wait for the migrations or do them.
func (b bundle) queued(client *locker.Client, n int) {
	b.t.Helper()
	eventually(b.t, "the queue has the right length", func() bool {
		entries, err := client.Queue(testContext(b.t), "migrations")
		return err == nil && len(entries) == n
	})
}

// The first instance loses the lock in the middle of a migration. It would take an hour there.
func TestMigrate_LossRollsBackAndTheNextInstanceDoesIt(t *testing.T) {
	t.Parallel()
	b, ok := setup(t)
	if !ok {
		return
	}
	slow := fstest.MapFS{"00002_bonus.sql": {Data: []byte(`-- +goose Up
		UPDATE accounts SET balance = balance + 10;
		SELECT pg_sleep(3600) WHERE current_setting('application_name') = 'first';`)}}
	accounts, err := fs.ReadFile(migrations(t), "00001_accounts.sql")
	if err != nil {
		t.Fatal(err)
	}
	slow["00001_accounts.sql"] = &fstest.MapFile{Data: accounts}
	first, network := b.client(5 * time.Second)
	second, _ := b.client(time.Minute)

	firstDone := b.start(first, "first", b.open("first"), slow)
	const sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'first'"
	eventually(t, "the first instance is in its migration", func() bool {
		return b.count(sessions+" AND state = 'active' AND query LIKE '%pg_sleep%'") == 1
	})
	secondDone := b.start(second, "second", b.open("second"), slow)
	b.queued(second, 2)
	network.Cut()

	result := firstDone()
	var partial *goose.PartialError
	if !errors.Is(result.err, locker.ErrLost) || !errors.As(result.err, &partial) || partial.Failed.Source.Version != 2 {
		t.Errorf("the first instance returned %v", result.err)
	}
	result = secondDone()
	if result.err != nil || len(result.applied) != 1 || result.applied[0].Source.Version != 2 {
		t.Errorf("the second instance applied %v, %v", result.applied, result.err)
	}
	b.wantOnce()
	eventually(t, "the sessions of the first instance have ended", func() bool { return b.count(sessions) == 0 })
}

// The first instance has sent its COMMIT when it loses the lock, and the COMMIT arrives after the
// second one holds it.
func TestMigrate_CommitThatArrivesAfterTheLossIsNotRepeated(t *testing.T) {
	t.Parallel()
	b, ok := setup(t)
	if !ok {
		return
	}
	config, err := pgx.ParseConfig(b.urlOf("first"))
	if err != nil {
		t.Fatal(err)
	}
	link := &slowLink{underWay: make(chan struct{})}
	config.DialFunc = link.dial
	db := stdlib.OpenDB(*config)
	t.Cleanup(func() { _ = db.Close() })
	t.Cleanup(link.deliver) // in case the test ends before
	first, network := b.client(5 * time.Second)
	second, _ := b.client(time.Minute)

	firstDone := b.start(first, "first", db, migrations(t))
	select {
	case <-link.underWay:
	case <-testContext(t).Done():
		t.Fatal("the first instance sent no COMMIT")
	}
	secondDone := b.start(second, "second", b.open("second"), migrations(t))
	b.queued(second, 2)
	network.Cut()
	if result := firstDone(); !errors.Is(result.err, locker.ErrLost) {
		t.Errorf("the first instance returned %v", result.err)
	}
	eventually(t, "the second instance waits in the database", func() bool {
		return b.count(`SELECT count(*) FROM pg_stat_activity WHERE application_name = 'second'
			AND (query LIKE '%pg_try_advisory_lock%' OR wait_event_type = 'Lock')`) == 1
	})
	link.deliver()

	if result := secondDone(); result.err != nil || len(result.applied) != 0 {
		t.Errorf("the second instance applied %v, %v", result.applied, result.err)
	}
	b.wantOnce()
}

// slowLink is the way to Postgres of one instance. What is sent from the COMMIT of the second
// migration on stays under way until it is delivered.
type slowLink struct {
	underWay chan struct{} // closed when the COMMIT is sent

	mu   sync.Mutex // guards the connection that is held up
	held *slowConn
}

func (l *slowLink) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &slowConn{Conn: conn, link: l}, nil
}

func (l *slowLink) hold(c *slowConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = c
	close(l.underWay)
}

func (l *slowLink) deliver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		l.held.deliver()
	}
}

type slowConn struct {
	net.Conn
	link *slowLink

	mu            sync.Mutex // guards what follows
	second        bool       // the second migration has begun
	held, closing bool
	sent          []byte
}

func (c *slowConn) Write(data []byte) (int, error) {
	c.mu.Lock()
	c.second = c.second || bytes.Contains(data, []byte("balance + 10"))
	hold := c.second && !c.held && bytes.Contains(data, []byte("commit"))
	c.held = c.held || hold
	if c.held {
		c.sent = append(c.sent, data...)
	}
	held := c.held
	c.mu.Unlock()
	switch {
	case hold:
		c.link.hold(c)
		fallthrough
	case held:
		return len(data), nil
	}
	return c.Conn.Write(data)
}

// Close closes the connection once everything is delivered.
func (c *slowConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held {
		c.closing = true
		return nil
	}
	return c.Conn.Close()
}

func (c *slowConn) deliver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held {
		return
	}
	_ = c.Conn.SetWriteDeadline(time.Time{}) // pgx has set one
	_, _ = c.Conn.Write(c.sent)
	c.held, c.second, c.sent = false, false, nil
	if c.closing {
		_ = c.Conn.Close()
	}
}
