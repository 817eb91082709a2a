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

// demonstrate serves, registers and watches until ctx ends: alpha and beta both want to be www, and
// whoever is gets cut off from etcd, again and again.
func demonstrate(ctx context.Context, s settings, _ []string, stdout, stderr io.Writer) (err error) {
	name, operator := "www."+lockName(s.zone), newLog(stderr)
	c, err := connect(ctx, s, operator)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	alpha, err := newHost(c.endpoints, s, "192.0.2.1", journal(stdout, "alpha  "))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, alpha.close()) }()
	beta, err := newHost(c.endpoints, s, "192.0.2.2", journal(stdout, "beta   "))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, beta.close()) }()
	server, err := newServer(ctx, c.client, s, operator)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, c.where())
	fmt.Fprintf(stdout, "%s is served on %s; while alpha and beta take turns to be %s, try\n\t%s\n",
		lockName(s.zone), server.address(), name, digLine(server.address(), name))

	g, going := errgroup.WithContext(ctx)
	g.Go(func() error { return server.run(going) })
	g.Go(func() error { return follow(going, c.client, name, journal(stdout, "watch  ")) })
	g.Go(func() error { return hold(going, alpha.client, name, alpha.address, alpha.journal) })
	g.Go(func() error { return hold(going, beta.client, name, beta.address, beta.journal) })
	g.Go(func() error { return breakOff(going, c.client, name, s.lifetimes.lease, alpha, beta) })
	return unlessInterrupted(ctx, g.Wait())
}

// breakOff cuts whoever holds name off from etcd, which is to the others as if it had died, and lets it
// come back when its record is gone, over and over.
func breakOff(ctx context.Context, client *locker.Client, name string, ttl time.Duration, hosts ...*host) error {
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
			h.journal.Printf("is cut off from etcd; the record has %v to live, at most", ttl)
			h.network.Cut()
			err := pause(ctx, ttl+time.Second)
			h.network.Heal() // also when interrupted, or it could not give back what it holds
			if err != nil {
				return err
			}
			h.journal.Print("is back")
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

// host is a client with a network of its own, that can be cut.
type host struct {
	address string
	journal *log.Logger
	network *embedtest.Proxy
	etcd    *clientv3.Client
	client  *locker.Client
}

func newHost(endpoints []string, s settings, address string, journal *log.Logger) (_ *host, err error) {
	h := &host{address: address, journal: journal}
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
	h.client, err = newClient(h.etcd, s, slog.New(slog.DiscardHandler)) // its journal tells the same
	return h, err
}

// close closes what there is, the last first.
func (h *host) close() error {
	var errs []error
	if h.network != nil {
		h.network.Heal() // so that the lease can be given back
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
