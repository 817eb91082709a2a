package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// arena holds what one side of a row works with: its own connections and its own names.
type arena struct {
	endpoints []string
	peers     peerAddresses
	id        string // part of all names, of the same length for each side
	workload  workload
	traffic   traffic // on what connections has returned

	mu      sync.Mutex // guards closers
	closers []func() error
}

// connect returns a connection that is closed with the arena.
func (a *arena) connect(opts ...grpc.DialOption) (*clientv3.Client, error) {
	etcd, err := clientv3.New(clientv3.Config{Endpoints: a.endpoints, DialOptions: opts, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	a.onClose(etcd.Close)
	return etcd, nil
}

// connections returns n connections that are established, and whose messages are counted.
func (a *arena) connections(ctx context.Context, n int) ([]*clientv3.Client, error) {
	connections := make([]*clientv3.Client, n)
	return connections, each(ctx, n, 16, func(ctx context.Context, i int) (err error) {
		if connections[i], err = a.connect(grpc.WithStatsHandler(&a.traffic)); err != nil {
			return err
		}
		_, err = connections[i].Get(ctx, "connected")
		return err
	})
}

// name returns the i-th name of a kind. A kind is one letter.
func (a *arena) name(kind string, i int) string { return fmt.Sprintf("%s-%s-%06d", a.id, kind, i) }

// names returns the first n names of a kind.
func (a *arena) names(kind string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = a.name(kind, i)
	}
	return names
}

// onClose registers a function that close calls. The last one registered is called first.
func (a *arena) onClose(fn func() error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closers = append(a.closers, fn)
}

func (a *arena) close() error {
	a.mu.Lock()
	closers := a.closers
	a.closers = nil
	a.mu.Unlock()
	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	return errors.Join(errs...)
}

// each calls do with 0 to n-1, at most together at a time.
func each(ctx context.Context, n, together int, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(together)
	for i := range n {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return do(ctx, i)
		})
	}
	return g.Wait()
}
