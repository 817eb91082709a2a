package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
)

const demonstrationUsage = `Mesh shows a health mesh: services that each hold a record of their own while they are
healthy, watch those they need, and react when one goes away.

	mesh             a demonstration: a dozen services in this process, and a page with
	                 buttons to make them unhealthy and to cut them off
	mesh node        one service, as a process of its own (mesh node -h)
	mesh dashboard   the page for services that run elsewhere (mesh dashboard -h)

The demonstration takes:

	-listen ADDRESS    where the page is; 127.0.0.1:8080 unless given
	-endpoints LIST    addresses of an etcd cluster, separated by commas; without it an
	                   etcd is started inside this program
	-settle DURATION   how long all has to be well before a service serves (1s)
	-ttl DURATION      how long the record of a service outlives its being cut off (5s)
	-quiet             do not print what the services say

Ctrl-C ends it. It leaves nothing behind in etcd.
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
	said := out
	if *quiet {
		said = io.Discard
	}
	d, err := stage(etcd.endpoints, *ttl, *settle, said)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return d.run(ctx) })
	tasks.Go(func() error { return show(ctx, l, etcd.endpoints, d.prefix, d, out) })
	return tasks.Wait()
}
