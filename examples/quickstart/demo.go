package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// ttl is the TTL of the leases: a host that is disconnected loses its lock after that
// time. The tests use a longer one, for busy machines.
var ttl = 2 * time.Second

// demo has what the demonstration needs: three clients of one cluster, and a network in
// front of beta that can be cut.
type demo struct {
	logf                  func(who, format string, args ...any)
	prefix                string
	server                *embedtest.Server // nil if the cluster runs elsewhere
	network               *embedtest.Proxy
	etcd, betaEtcd        *clientv3.Client
	alpha, beta, observer *locker.Client
	ready                 bool // whether etcd has answered
}

// newDemo sets up the demonstration.
func newDemo(ctx context.Context, endpoints []string) (_ *demo, err error) {
	d := &demo{prefix: fmt.Sprintf("locker-quickstart-%08x/", rand.Uint32())} // different for each run
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if len(endpoints) == 0 {
		if d.server, err = embedtest.New(); err != nil {
			return nil, err
		}
		endpoints = d.server.Endpoints()
	}
	if d.network, err = embedtest.NewProxy(endpoints...); err != nil {
		return nil, err
	}
	if d.betaEtcd, err = clientv3.New(locker.ClientConfig(d.network.Endpoints()...)); err != nil {
		return nil, err
	}
	if d.etcd, err = clientv3.New(locker.ClientConfig(endpoints...)); err != nil {
		return nil, err
	}
	options := []locker.Option{locker.WithPrefix(d.prefix), locker.WithTTL(ttl)}
	if d.alpha, err = locker.New(d.etcd, options...); err != nil {
		return nil, err
	}
	if d.observer, err = locker.New(d.etcd, options...); err != nil {
		return nil, err
	}
	if d.beta, err = locker.New(d.betaEtcd, options...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errors.New("etcd does not answer"))
	defer cancel()
	if _, err = d.observer.Get(ctx, name); !errors.Is(err, locker.ErrNotFound) {
		return nil, err
	}
	d.ready = true
	return d, nil
}

// close closes everything in reverse order, and checks that nothing is left in etcd.
func (d *demo) close() error {
	var errs []error
	if d.network != nil {
		d.network.Heal() // so that beta can revoke its lease
	}
	for _, c := range []*locker.Client{d.beta, d.alpha, d.observer} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if d.ready {
		errs = append(errs, d.nothingLeft())
	}
	for _, etcd := range []*clientv3.Client{d.betaEtcd, d.etcd} {
		if etcd != nil {
			errs = append(errs, etcd.Close())
		}
	}
	if d.network != nil {
		errs = append(errs, d.network.Close())
	}
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	return errors.Join(errs...)
}

func (d *demo) nothingLeft() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := d.etcd.Get(ctx, d.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	switch {
	case err != nil:
		return fmt.Errorf("cannot check whether keys are left in etcd below %s: %w", d.prefix, err)
	case resp.Count > 0:
		return fmt.Errorf("%d keys are left in etcd below %s", resp.Count, d.prefix)
	}
	return nil
}

// stateReader reads the observer's watch one state at a time.
type stateReader struct {
	logf func(who, format string, args ...any)
	next func() (locker.State, error, bool)
}

func (d *demo) watch(ctx context.Context) (*stateReader, func()) {
	next, stop := iter.Pull2(d.observer.Watch(ctx, name))
	return &stateReader{d.logf, next}, stop
}

// waitFor reads until the state in which name has the given value, or is not held if
// value is empty.
func (r *stateReader) waitFor(value string) error {
	for {
		state, err, _ := r.next()
		if err != nil {
			return err
		}
		if state.Value == value {
			if state.Held {
				r.logf("observer", "Watch: %s is now %s (revision %d)", state.Name, state.Value, state.Revision)
			} else {
				r.logf("observer", "Watch: %s is no longer held (revision %d)", state.Name, state.Revision)
			}
			return nil
		}
	}
}

// lockResult is the outcome of a Lock call, and when the call returned.
type lockResult struct {
	lock *locker.Lock
	at   time.Time
	err  error
}

// lockAsync calls Lock in the background. The function it returns waits for the outcome.
func lockAsync(ctx context.Context, c *locker.Client, value string) func() (*locker.Lock, time.Time, error) {
	result := make(chan lockResult, 1)
	go func() {
		lock, err := c.Lock(ctx, name, value) // returns when ctx ends
		result <- lockResult{lock, time.Now(), err}
	}()
	return func() (*locker.Lock, time.Time, error) {
		r := <-result
		return r.lock, r.at, r.err
	}
}

// pause gives a reader of the output time to follow.
func pause(ctx context.Context) error {
	select {
	case <-time.After(1200 * time.Millisecond): // also does not coincide with a renewal of a 2 s lease
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ms rounds d for display.
func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
