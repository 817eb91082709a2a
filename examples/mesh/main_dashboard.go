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
)

const dashboardUsage = `Mesh dashboard shows the services of a mesh on a page: who is up, who is not and why,
who needs whom, and the last changes.

	-listen ADDRESS    where the page is; 127.0.0.1:8080 unless given
	-endpoints LIST    addresses of an etcd cluster, separated by commas; without it an
	                   etcd is started inside this program, for others to join
	-prefix PREFIX     of the mesh in etcd ("mesh/")

The page is at /, the same state as JSON at /state.json, as a stream of events at
/events; /health is 200 while etcd is heard of. Ctrl-C ends it.
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
	// The TTL is how often the cluster is asked whether the page is current.
	m, err := join(ctx, endpoints, locker.WithPrefix(prefix), locker.WithTTL(4*time.Second))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	cache, err := m.NewCache(ctx, "")
	if err != nil {
		return err
	}
	defer cache.Close()
	b := newBoard()
	page := &dashboard{board: b, age: cache.Age, faults: d}
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { b.follow(ctx, m.Client, cache); return nil })
	tasks.Go(func() error { return serveHTTP(ctx, l, page.handler()) })
	fmt.Fprintf(out, "The page is at http://%s/\n", reachable(l.Addr(), "localhost"))
	return tasks.Wait()
}
