package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// demonstrate serves, registers and watches until ctx ends: alpha and beta both want to
// hold the name www, and share the name pool. The one that holds www is repeatedly
// disconnected from etcd.
func demonstrate(ctx context.Context, s settings, _ []string, stdout, stderr io.Writer) (err error) {
	www, pool, operator := "www."+lockName(s.zone), "pool."+lockName(s.zone), newLog(stderr)
	c, err := connect(ctx, s, operator)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	alpha, err := newDemoHost(c.endpoints, s, "192.0.2.1", newEventLog(stdout, "alpha  "))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, alpha.close()) }()
	beta, err := newDemoHost(c.endpoints, s, "192.0.2.2", newEventLog(stdout, "beta   "))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, beta.close()) }()
	server, err := newDNSServer(ctx, c.client, s, operator)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, c.where())
	fmt.Fprintf(stdout, "serving %s on %s while alpha and beta take turns holding %s and share %s; try\n\t%s\n\t%s\n",
		lockName(s.zone), server.address(), www, pool, digLine(server.address(), www), digLine(server.address(), pool))

	g, groupCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.run(groupCtx) })
	for _, name := range []string{www, pool} {
		g.Go(func() error { return follow(groupCtx, c.client, name, newEventLog(stdout, "watch  ")) })
	}
	for _, h := range []*demoHost{alpha, beta} {
		g.Go(func() error { return h.hold(groupCtx, www) })
		g.Go(func() error { return h.share(groupCtx, pool) })
	}
	g.Go(func() error { return disconnectHolders(groupCtx, c.client, www, s.lifetimes.lease, alpha, beta) })
	return ignoreInterrupt(ctx, g.Wait())
}

// disconnectHolders repeatedly disconnects the host that holds name from etcd, as if it
// had died, and reconnects it once its record is gone.
func disconnectHolders(ctx context.Context, client *locker.Client, name string, ttl time.Duration, hosts ...*demoHost) error {
	for {
		if err := pause(ctx, 2*ttl); err != nil {
			return err
		}
		holder, err := client.Get(ctx, name)
		if errors.Is(err, locker.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, h := range hosts {
			if h.address != holder.Value {
				continue
			}
			h.events.Printf("disconnected from etcd; the record expires within %v", ttl)
			h.network.Cut()
			err := pause(ctx, ttl+time.Second)
			h.network.Heal() // also after an interrupt, so that the host can release its lock
			if err != nil {
				return err
			}
			h.events.Print("reconnected to etcd")
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// demoHost is a client with its own network, which can be cut.
type demoHost struct {
	address string
	events  *log.Logger
	network *embedtest.Proxy
	etcd    *clientv3.Client
	client  *locker.Client
}

func newDemoHost(endpoints []string, s settings, address string, events *log.Logger) (_ *demoHost, err error) {
	h := &demoHost{address: address, events: events}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if h.network, err = embedtest.NewProxy(endpoints...); err != nil {
		return nil, err
	}
	if h.etcd, err = clientv3.New(h.network.ClientConfig()); err != nil {
		return nil, err
	}
	h.client, err = newClient(h.etcd, s, slog.New(slog.DiscardHandler)) // the event log reports the same
	return h, err
}

// hold takes turns with the other host.
func (h *demoHost) hold(ctx context.Context, name string) error {
	return registration{name: name, value: h.address}.hold(ctx, h.client, h.events)
}

// share holds a name together with the other host. It logs nothing: the watch shows it.
func (h *demoHost) share(ctx context.Context, name string) error {
	return registration{name: name, value: h.address, shared: true}.hold(ctx, h.client, newEventLog(io.Discard, ""))
}

// close closes everything that is open, in reverse order.
func (h *demoHost) close() error {
	var errs []error
	if h.network != nil {
		h.network.Heal() // so that the lease can be revoked
	}
	if h.client != nil {
		errs = append(errs, h.client.Close())
	}
	if h.etcd != nil {
		errs = append(errs, h.etcd.Close())
	}
	if h.network != nil {
		errs = append(errs, h.network.Close())
	}
	return errors.Join(errs...)
}
