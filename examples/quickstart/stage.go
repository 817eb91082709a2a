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

// ttl is how long it takes until a host that is cut off has lost its lock. The tests, on machines that are
// busy, have more time.
var ttl = 2 * time.Second

// stage is what the story needs: three clients of one cluster, and a network in
// front of beta that can be cut.
type stage struct {
	say                   func(who, format string, args ...any)
	prefix                string
	server                *embedtest.Server // nil with a real cluster
	network               *embedtest.Proxy
	etcd, betaEtcd        *clientv3.Client
	alpha, beta, observer *locker.Client
	ready                 bool // etcd has answered
}

// setUp builds the stage, or an explanation why it cannot.
func setUp(ctx context.Context, endpoints []string) (_ *stage, err error) {
	s := &stage{prefix: fmt.Sprintf("locker-quickstart-%08x/", rand.Uint32())} // one of its own for each run
	defer func() {
		if err != nil {
			err = errors.Join(err, s.tearDown())
		}
	}()
	if len(endpoints) == 0 {
		if s.server, err = embedtest.New(); err != nil {
			return nil, err
		}
		endpoints = s.server.Endpoints()
	}
	if s.network, err = embedtest.NewProxy(endpoints...); err != nil {
		return nil, err
	}
	if s.betaEtcd, err = clientv3.New(locker.ClientConfig(s.network.Endpoints()...)); err != nil {
		return nil, err
	}
	if s.etcd, err = clientv3.New(locker.ClientConfig(endpoints...)); err != nil {
		return nil, err
	}
	options := []locker.Option{locker.WithPrefix(s.prefix), locker.WithTTL(ttl)}
	if s.alpha, err = locker.New(s.etcd, options...); err != nil {
		return nil, err
	}
	if s.observer, err = locker.New(s.etcd, options...); err != nil {
		return nil, err
	}
	if s.beta, err = locker.New(s.betaEtcd, options...); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Second, errors.New("etcd does not answer"))
	defer cancel()
	if _, err = s.observer.Get(ctx, name); !errors.Is(err, locker.ErrNotFound) {
		return nil, err
	}
	s.ready = true
	return s, nil
}

// tearDown closes what there is, the last first, and checks that etcd is as before.
func (s *stage) tearDown() error {
	var errs []error
	if s.network != nil {
		s.network.Heal() // so that beta can give back its lease
	}
	for _, c := range []*locker.Client{s.beta, s.alpha, s.observer} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if s.ready {
		errs = append(errs, s.nothingLeft())
	}
	for _, etcd := range []*clientv3.Client{s.betaEtcd, s.etcd} {
		if etcd != nil {
			errs = append(errs, etcd.Close())
		}
	}
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	if s.server != nil {
		errs = append(errs, s.server.Close())
	}
	return errors.Join(errs...)
}

func (s *stage) nothingLeft() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := s.etcd.Get(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	switch {
	case err != nil:
		return fmt.Errorf("cannot see whether anything is left in etcd below %s: %w", s.prefix, err)
	case resp.Count > 0:
		return fmt.Errorf("%d keys are left in etcd below %s", resp.Count, s.prefix)
	}
	return nil
}

// observation is the observer's watch, read one state at a time.
type observation struct {
	say  func(who, format string, args ...any)
	next func() (locker.State, error, bool)
}

func (s *stage) watch(ctx context.Context) (*observation, func()) {
	next, stop := iter.Pull2(s.observer.Watch(ctx, name))
	return &observation{s.say, next}, stop
}

// expect reads on to the state in which name has that value, or nobody holds it.
func (o *observation) expect(value string) error {
	for {
		state, err, _ := o.next()
		if err != nil {
			return err
		}
		if state.Value == value {
			if state.Held {
				o.say("observer", "Watch: %s is %s now (revision %d)", state.Name, state.Value, state.Revision)
			} else {
				o.say("observer", "Watch: nobody is %s now (revision %d)", state.Name, state.Revision)
			}
			return nil
		}
	}
}

// hold is what came of a Lock call, and when.
type hold struct {
	lock *locker.Lock
	at   time.Time
	err  error
}

// lockLater locks name in the background. What it returns waits for that.
func lockLater(ctx context.Context, c *locker.Client, value string) func() (*locker.Lock, time.Time, error) {
	result := make(chan hold, 1)
	go func() {
		lock, err := c.Lock(ctx, name, value) // it returns when ctx ends
		result <- hold{lock, time.Now(), err}
	}()
	return func() (*locker.Lock, time.Time, error) {
		h := <-result
		return h.lock, h.at, h.err
	}
}

// pause lets the reader follow.
func pause(ctx context.Context) error {
	select {
	case <-time.After(1200 * time.Millisecond): // also away from the renewals of a 2 s lease
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ms rounds for reading.
func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
