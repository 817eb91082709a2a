// Command migration migrates a database once, although three instances of a service start at the
// same time.
//
//	go run ./examples/migration
//	go run ./examples/migration -endpoints 10.0.0.1:2379 -postgres postgres://user@10.0.0.2/database
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/postgres"
)

const usage = `Migration migrates a database once, although three instances of a service start at the
same time: each calls goose under the lock "migrations".

	-endpoints LIST  comma-separated addresses of an etcd cluster;
	                 by default, etcd runs inside this program
	-postgres URL    a Postgres, such as postgres://user:password@localhost/database;
	                 by default, one is started, which has to be installed
	                 (Debian: apt-get install postgresql)

The exit code is 0 if each migration was applied once, 1 with a message if not, and 130
if the program was interrupted. It leaves nothing behind in etcd and Postgres.
`

func main() {
	flag.Usage = func() { fmt.Fprint(flag.CommandLine.Output(), usage) }
	list, url := flag.String("endpoints", "", ""), flag.String("postgres", "", "")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "migration: unknown argument %q\n\n%s", flag.Arg(0), usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program immediately
	err := run(ctx, os.Stdout, strings.FieldsFunc(*list, func(r rune) bool { return r == ',' || r == ' ' }), *url)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "migration: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "migration:", err)
		os.Exit(1)
	}
}

// run starts what is missing, and leaves nothing behind.
func run(ctx context.Context, out io.Writer, endpoints []string, url string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	events := log.New(out, "", 0)
	if len(endpoints) == 0 {
		etcd, err := embedtest.New()
		if err != nil {
			return err
		}
		defer etcd.Close()
		endpoints = etcd.Endpoints()
		events.Print("etcd      running inside this program (-endpoints selects a cluster of your own)")
	}
	database, err := postgres.Open(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	events.Print("postgres  " + database.Where())
	migrations, err := fs.Sub(files, "migrations")
	if err != nil {
		return err
	}
	prefix := fmt.Sprintf("locker-migration-%08x/", rand.Uint32()) // different for each run
	g, groupCtx := errgroup.WithContext(ctx)
	for _, host := range []string{"web-1", "web-2", "web-3"} {
		g.Go(func() error { return instance(groupCtx, events, host, prefix, endpoints, database.URL(), migrations) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return checkOnce(ctx, events, database.URL())
}

// instance is what one instance of the service does when it starts.
func instance(ctx context.Context, events *log.Logger, host, prefix string, endpoints []string, url string, migrations fs.FS) (err error) {
	etcd, err := clientv3.New(locker.ClientConfig(endpoints...))
	if err != nil {
		return err
	}
	defer etcd.Close()
	client, err := locker.New(etcd, locker.WithPrefix(prefix))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	db, err := sql.Open("pgx", url)
	if err != nil {
		return err
	}
	defer db.Close()
	provider, err := newProvider(db, migrations)
	if err != nil {
		return err
	}

	events.Printf("%s     starts", host)
	applied, err := migrate(ctx, client, host, provider)
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	for _, migration := range applied {
		events.Printf("%s     applied %s", host, migration.Source.Path)
	}
	if len(applied) == 0 {
		events.Printf("%s     found nothing to do", host)
	}
	return nil
}

// checkOnce asks the database what was done.
func checkOnce(ctx context.Context, events *log.Logger, url string) error {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return err
	}
	defer db.Close()
	const query = `SELECT (SELECT count(*) FROM goose_db_version WHERE version_id > 0), (SELECT sum(balance) FROM accounts)`
	var versions, sum int
	if err := db.QueryRowContext(ctx, query).Scan(&versions, &sum); err != nil {
		return err
	}
	if versions != 2 || sum != 100+200+2*10 {
		return fmt.Errorf("%d versions are recorded, and the balances add up to %d", versions, sum)
	}
	events.Printf("postgres  %d versions are recorded, and the balances add up to %d: each migration was applied once", versions, sum)
	return nil
}
