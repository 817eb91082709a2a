package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/postgres"
)

// setup returns connections to a database that has the table, and false if Postgres is not installed.
func setup(t *testing.T, connections int) (conns []*pgx.Conn, ok bool) {
	t.Helper()
	database, ok := postgres.Start(t)
	if !ok {
		return nil, false
	}
	for range connections {
		conns = append(conns, connect(t, database))
	}
	if _, err := conns[0].Exec(testContext(t), table); err != nil {
		t.Fatal(err)
	}
	return conns, true
}

// wantRecord fails the test unless the record of name is this.
func wantRecord(t *testing.T, conn *pgx.Conn, value string, token int64) {
	t.Helper()
	var got string
	var gotToken int64
	err := conn.QueryRow(testContext(t), "SELECT coalesce(value, ''), token FROM records WHERE name = $1", name).Scan(&got, &gotToken)
	if err != nil || got != value || gotToken != token {
		t.Errorf("the record has %q, token %d, %v, want %q, token %d", got, gotToken, err, value, token)
	}
}

// set returns a function that sets the value in a transaction.
func set(ctx context.Context, value string) func(pgx.Tx) error {
	return func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE records SET value = $2 WHERE name = $1", name, value)
		return err
	}
}

func newClient(t *testing.T, etcd *embedtest.Server) *locker.Client {
	t.Helper()
	client, err := locker.New(etcd.Client(t), locker.WithTTL(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestWrite_LateHolderIsRefusedThoughItHasNotNoticedItsLoss(t *testing.T) {
	t.Parallel()
	conns, ok := setup(t, 2)
	if !ok {
		return
	}
	ctx, etcd := testContext(t), embedtest.Start(t)
	first, err := newClient(t, etcd).Lock(ctx, name, "first")
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"first", "first again"} {
		if err := write(ctx, conns[0], name, first.Token(), value); err != nil {
			t.Fatal(err)
		}
	}
	later := newClient(t, etcd)
	holder, err := later.Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	etcd.ExpireLease(t, holder.Lease)
	second, err := later.Lock(ctx, name, "second")
	if err != nil {
		t.Fatal(err)
	}
	if err := write(ctx, conns[1], name, second.Token(), "second"); err != nil {
		t.Fatal(err)
	}

	t.Logf("the late holder's view of its hold: %v", first.Err()) // nil, unless this machine is very slow
	if err := write(ctx, conns[0], name, first.Token(), "late"); !errors.Is(err, errStale) {
		t.Errorf("the late write returned %v", err)
	}
	err = transact(ctx, conns[0], name, first.Token(), func(pgx.Tx) error {
		t.Error("the function of a refused transaction was called")
		return nil
	})
	if !errors.Is(err, errStale) {
		t.Errorf("the late transaction returned %v", err)
	}
	wantRecord(t, conns[1], "second", second.Token())
}

// The earlier holder has passed the check and is not done when the later one comes. Whatever
// becomes of its transaction, the later holder writes after it.
func TestTransact_LaterHolderWaitsForTheTransactionOfAnEarlierOne(t *testing.T) {
	t.Parallel()
	conns, ok := setup(t, 3)
	if !ok {
		return
	}
	ctx := testContext(t)
	failure := errors.New("a failure of the earlier holder")
	for i, want := range []error{nil, failure} {
		earlier, later := int64(10*i+1), int64(10*i+2)
		done := make(chan error, 1)
		err := transact(ctx, conns[0], name, earlier, func(tx pgx.Tx) error {
			go func() {
				done <- transact(ctx, conns[1], name, later, func(tx pgx.Tx) error {
					_, err := tx.Exec(ctx, "UPDATE records SET value = coalesce(value, '') || ', later' WHERE name = $1", name)
					return err
				})
			}()
			eventually(t, "the later holder waits", func() bool {
				return count(t, conns[2], "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 1
			})
			return errors.Join(set(ctx, fmt.Sprint("earlier ", i))(tx), want)
		})
		if !errors.Is(err, want) {
			t.Errorf("the earlier holder's transaction returned %v, want %v", err, want)
		}
		if err := <-done; err != nil {
			t.Errorf("the later holder's transaction returned %v", err)
		}
		wantRecord(t, conns[2], []string{"earlier 0, later", "earlier 0, later, later"}[i], later)
	}
}

func TestTransact_WritesNothingIfItFails(t *testing.T) {
	t.Parallel()
	conns, ok := setup(t, 1)
	if !ok {
		return
	}
	ctx, conn, failure := testContext(t), conns[0], errors.New("a failure")
	err := transact(ctx, conn, name, 2, func(tx pgx.Tx) error {
		return errors.Join(set(ctx, "half")(tx), failure)
	})
	if !errors.Is(err, failure) {
		t.Errorf("the transaction returned %v", err)
	}
	if n := count(t, conn, "SELECT count(*) FROM records"); n != 0 {
		t.Errorf("there are %d records", n)
	}
	if err := write(ctx, conn, name, 1, "whole"); err != nil {
		t.Error(err)
	}
	wantRecord(t, conn, "whole", 1)
}

func TestWrite_TokensNeverDecrease(t *testing.T) {
	t.Parallel()
	const writers, tokens = 8, 100
	conns, ok := setup(t, writers)
	if !ok {
		return
	}
	// The trigger runs while the row is locked, so the history is in the order of the writes.
	const history = `
		CREATE TABLE history (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, before bigint, after bigint);
		CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN INSERT INTO history (before, after) VALUES (OLD.token, NEW.token); RETURN NULL; END $$;
		CREATE TRIGGER keep AFTER UPDATE ON records FOR EACH ROW EXECUTE FUNCTION keep()`
	if _, err := conns[0].Exec(testContext(t), history); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	var g errgroup.Group
	for i, conn := range conns {
		g.Go(func() error {
			for _, token := range rand.Perm(tokens) {
				var err error
				if token := int64(token + 1); i%2 == 0 {
					err = write(ctx, conn, name, token, "by write")
				} else {
					err = transact(ctx, conn, name, token, set(ctx, "by transact"))
				}
				if err != nil && !errors.Is(err, errStale) {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := count(t, conns[0], "SELECT count(*) FROM history WHERE after < before"); n != 0 {
		t.Errorf("%d writes have made the token smaller", n)
	}
	if n := count(t, conns[0], "SELECT token FROM records"); n != tokens {
		t.Errorf("the token is %d, want %d", n, tokens)
	}
}
