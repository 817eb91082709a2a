// Command fencing writes to Postgres under a lock, so that the late write of a holder that was
// paused is refused.
//
//	go run ./examples/fencing
//	go run ./examples/fencing -endpoints 10.0.0.1:2379 -postgres postgres://user@10.0.0.2/database
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/postgres"
)

const usage = `Fencing writes to Postgres under a lock: alpha holds the lock and loses it without
noticing, beta takes it and writes, and alpha's late writes are refused.

	-endpoints LIST  comma-separated addresses of an etcd cluster;
	                 by default, etcd runs inside this program
	-postgres URL    a Postgres, such as postgres://user:password@localhost/database;
	                 by default, one is started, which has to be installed
	                 (Debian: apt-get install postgresql)

The exit code is 0 if the late writes were refused, 1 with a message if not, and 130 if
the program was interrupted. It leaves nothing behind in etcd and Postgres.
`

func main() {
	flag.Usage = func() { fmt.Fprint(flag.CommandLine.Output(), usage) }
	list, url := flag.String("endpoints", "", ""), flag.String("postgres", "", "")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "fencing: unknown argument %q\n\n%s", flag.Arg(0), usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program immediately
	err := run(ctx, os.Stdout, strings.FieldsFunc(*list, func(r rune) bool { return r == ',' || r == ' ' }), *url)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "fencing: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "fencing:", err)
		os.Exit(1)
	}
}

// run starts what is missing, runs the demonstration, and leaves nothing behind.
func run(ctx context.Context, out io.Writer, endpoints []string, url string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	logf := func(who, format string, args ...any) {
		fmt.Fprintf(out, "%-8s  %s\n", who, fmt.Sprintf(format, args...))
	}
	if len(endpoints) == 0 {
		etcd, err := embedtest.New()
		if err != nil {
			return err
		}
		defer etcd.Close()
		endpoints = etcd.Endpoints()
		logf("etcd", "running inside this program (-endpoints selects a cluster of your own)")
	}
	database, err := postgres.Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	logf("postgres", "%s", database.Where())
	d, err := newDemo(ctx, logf, endpoints, database.URL())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	return d.run(ctx)
}

const name = "report"

// run returns an error if a late write is not refused.
func (d *demo) run(ctx context.Context) error {
	// 1. Alpha holds the lock, and sends the token of its hold along with each write.
	first, err := d.alpha.client.Lock(ctx, name, "alpha")
	if err != nil {
		return err
	}
	d.logf("alpha", "holds %s with token %d", name, first.Token())
	if err := write(ctx, d.alpha.conn, name, first.Token(), "written by alpha"); err != nil {
		return err
	}
	d.logf("alpha", "has written")

	// 2. Alpha is disconnected from etcd, and beta takes over. Alpha's context has ended by then,
	// but suppose that it looked at it just before, and is slow with its next write.
	d.alpha.network.Cut()
	d.logf("network", "alpha is disconnected from etcd, and does not notice")
	second, err := d.beta.client.Lock(ctx, name, "beta")
	if err != nil {
		return err
	}
	d.logf("beta", "holds %s with token %d", name, second.Token())
	if err := write(ctx, d.beta.conn, name, second.Token(), "written by beta"); err != nil {
		return err
	}
	d.logf("beta", "has written")
	d.alpha.network.Heal()
	if _, err := d.alpha.client.Get(ctx, name); err != nil { // waits for the connection
		return err
	}

	// 3. Postgres has seen the larger token, and refuses the smaller one.
	if err := write(ctx, d.alpha.conn, name, first.Token(), "too late"); !errors.Is(err, errStale) {
		return fmt.Errorf("alpha's late write was not refused: write returned %v", err)
	}
	d.logf("alpha", "its late write with token %d is %v", first.Token(), errStale)
	replace := func(value string) func(pgx.Tx) error {
		return func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE records SET value = $2 WHERE name = $1", name, value)
			return err
		}
	}
	if err := transact(ctx, d.alpha.conn, name, first.Token(), replace("too late")); !errors.Is(err, errStale) {
		return fmt.Errorf("alpha's late transaction was not refused: transact returned %v", err)
	}
	d.logf("alpha", "its late transaction is refused as well")
	if err := transact(ctx, d.beta.conn, name, second.Token(), replace("written by beta again")); err != nil {
		return err
	}
	d.logf("beta", "has written in a transaction")
	return d.check(ctx, "written by beta again", second.Token())
}
