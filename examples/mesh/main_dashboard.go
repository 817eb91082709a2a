package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/livepage"
)

const dashboardUsage = `Mesh dashboard shows the services of a mesh on a page: which are up, which are not and why,
which need which, and the latest changes.

	-listen ADDRESS    address of the page (127.0.0.1:8080)
	-endpoints LIST    comma-separated addresses of an etcd cluster; by default, etcd runs
	                   inside this program, and others can join it
	-prefix PREFIX     prefix of the mesh in etcd ("mesh/")

The page is at /, the same state as JSON at /state.json, and an event stream at /events.
/health returns 200 while etcd answers. Ctrl-C ends the program.
`

func runDashboard(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("mesh dashboard", flag.ContinueOnError)
	address := flags.String("listen", "127.0.0.1:8080", "")
	endpoints := flags.String("endpoints", "", "")
	prefix := flags.String("prefix", "mesh/", "")
	if err := parse(flags, args, dashboardUsage, out); err != nil {
		return err
	}
	given, err := parseEndpoints(*endpoints, dashboardUsage)
	if err != nil {
		return err
	}
	l, err := listen(*address)
	if err != nil {
		return err
	}
	defer l.Close()
	etcd, err := openCluster(given, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.close()) }()
	return show(ctx, l, etcd.endpoints, *prefix, nil, out)
}

// show serves the page until ctx ends.
func show(ctx context.Context, l net.Listener, endpoints []string, prefix string, d *demonstration, out io.Writer) (err error) {
	// The TTL determines how often the cache checks that it is current.
	conn, err := connect(ctx, endpoints, locker.WithPrefix(prefix), locker.WithTTL(4*time.Second))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.close()) }()
	cache, err := conn.NewCache(ctx, "")
	if err != nil {
		return err
	}
	defer cache.Close()
	b := newBoard()
	page := &dashboard{board: b, age: cache.Age, demo: d}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { b.follow(ctx, conn.Client, cache); return nil })
	tasks.Go(func() error { return livepage.Serve(ctx, l, page.handler()) })
	fmt.Fprintf(out, "The page is at http://%s/\n", reachable(l.Addr(), "localhost"))
	return tasks.Wait()
}
