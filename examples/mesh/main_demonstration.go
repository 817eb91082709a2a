package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
)

const demonstrationUsage = `Mesh demonstrates a health mesh: each service holds a record while it is healthy, watches
the services it needs, and reacts when one of them goes down.

	mesh             a demonstration: a dozen services in this process, and a page with
	                 buttons to make them unhealthy and to disconnect them
	mesh node        one service, as a separate process (mesh node -h)
	mesh dashboard   the page for services that run elsewhere (mesh dashboard -h)

The demonstration accepts:

	-listen ADDRESS    address of the page (127.0.0.1:8080)
	-endpoints LIST    comma-separated addresses of an etcd cluster; by default, etcd runs
	                   inside this program
	-settle DURATION   how long everything must be ready before a service serves (1s)
	-ttl DURATION      how long the record of a disconnected service remains (5s)
	-quiet             do not print the log of the services

Ctrl-C ends the program. It leaves nothing behind in etcd.
`

func runDemonstration(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("mesh", flag.ContinueOnError)
	address := flags.String("listen", "127.0.0.1:8080", "")
	endpoints := flags.String("endpoints", "", "")
	settle := flags.Duration("settle", time.Second, "")
	ttl := flags.Duration("ttl", 5*time.Second, "")
	quiet := flags.Bool("quiet", false, "")
	if err := parse(flags, args, demonstrationUsage, out); err != nil {
		return err
	}
	given, err := parseEndpoints(*endpoints, demonstrationUsage)
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
	serviceLog := out
	if *quiet {
		serviceLog = io.Discard
	}
	d, err := newDemonstration(etcd.endpoints, *ttl, *settle, serviceLog)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return d.run(ctx) })
	tasks.Go(func() error { return show(ctx, l, etcd.endpoints, d.prefix, d, out) })
	return tasks.Wait()
}
