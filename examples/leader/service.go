package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

// drainTime is how long requests may take to finish when the service stops. The tests have
// more time.
var drainTime = 10 * time.Second

// A service is an HTTP service of several instances, one of which leads.
type service struct {
	name     string         // of this instance
	client   *locker.Client // which run closes
	listener net.Listener   // which run closes
	routes   *http.ServeMux // to which run adds /leader
	lead     func(ctx context.Context, lock *locker.Lock) error
}

// run serves HTTP, and calls lead while this instance leads, until ctx ends. Then it stops,
// in an order that matters:
//
//  1. lead returns, because its context has ended: nobody works as the leader any more.
//  2. The lock is released, and the next instance leads at once, instead of when the
//     slowest request has been answered. Until now the server answers as before, and
//     /leader says no.
//  3. The server shuts down: it takes no more requests, and finishes those it has.
//  4. The client is closed, because requests may have used it. The caller closes the
//     connection to etcd after that: what Close removes from etcd goes through it.
//
// It blocks until all of that is done. If it cannot serve or campaign any longer, it stops
// in the same way, and returns the reason.
func (s *service) run(ctx context.Context) error {
	var hold atomic.Pointer[locker.Lock]
	s.routes.HandleFunc("GET /leader", func(w http.ResponseWriter, _ *http.Request) {
		// Err looks at the clock: it does not say yes after a pause of the process.
		if lock := hold.Load(); lock == nil || lock.Err() != nil {
			http.Error(w, s.name+" does not lead", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "%s leads\n", s.name)
	})
	server := &http.Server{Handler: s.routes, ReadHeaderTimeout: drainTime}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return err // ends ctx
		}
		return nil
	})
	g.Go(func() error {
		err := s.client.Campaign(ctx, "leader", s.name, func(ctx context.Context, lock *locker.Lock) error {
			hold.Store(lock)
			return s.lead(ctx, lock)
		})
		if errors.Is(err, context.Cause(ctx)) {
			err = nil
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		return errors.Join(err, server.Shutdown(drain))
	})
	return errors.Join(g.Wait(), s.client.Close())
}
