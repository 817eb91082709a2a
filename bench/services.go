package main

import (
	"context"
	"errors"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

// mutex locks and unlocks a name repeatedly for one goroutine. Its methods are those of
// concurrency.Mutex.
type mutex interface {
	Lock(ctx context.Context) error
	Unlock(ctx context.Context) error
}

// service is an implementation of locks.
type service struct {
	name string
	peer bool
	// join returns a new client with its own connection.
	join func(ctx context.Context, a *arena) (client, error)
}

// client returns a new mutex for a name.
type client func(name string) mutex

// The prefixes of keys have the same length, so that the keys do too.
const (
	lockerPrefix = "locker/"
	mutexPrefix  = "mutual/"
	floorPrefix  = "floors/"
)

var lockerService = lockerWith()

// lockerWith is Locker with options for each lock.
func lockerWith(opts ...locker.LockOption) service {
	return service{name: ours, join: func(ctx context.Context, a *arena) (client, error) {
		etcd, err := a.connect()
		if err != nil {
			return nil, err
		}
		c, err := newLocker(a, etcd)
		if err != nil {
			return nil, err
		}
		return func(name string) mutex { return &lockerMutex{client: c, name: name, opts: opts} }, nil
	}}
}

// newLocker returns a client of Locker that is closed with the arena.
func newLocker(a *arena, etcd *clientv3.Client, opts ...locker.Option) (*locker.Client, error) {
	clients, err := newLockers(a, []*clientv3.Client{etcd}, 1, opts...)
	if err != nil {
		return nil, err
	}
	return clients[0], nil
}

// newLockers returns n clients of Locker that share the connections. They are closed with
// the arena, all at once.
func newLockers(a *arena, connections []*clientv3.Client, n int, opts ...locker.Option) ([]*locker.Client, error) {
	opts = append(opts, locker.WithPrefix(lockerPrefix))
	var clients []*locker.Client
	a.onClose(func() error {
		errs := make([]error, len(clients))
		var closing sync.WaitGroup
		for i, c := range clients {
			closing.Go(func() { errs[i] = c.Close() })
		}
		closing.Wait()
		return errors.Join(errs...)
	})
	for i := range n {
		c, err := locker.New(connections[i%len(connections)], opts...)
		if err != nil {
			return nil, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}

// lockerMutex keeps the hold between Lock and Unlock.
type lockerMutex struct {
	client *locker.Client
	name   string
	opts   []locker.LockOption
	held   *locker.Lock
}

func (m *lockerMutex) Lock(ctx context.Context) (err error) {
	m.held, err = m.client.Lock(ctx, m.name, "", m.opts...) // a Mutex has no value either
	return err
}

func (m *lockerMutex) Unlock(ctx context.Context) error { return m.held.Unlock(ctx) }

// mutexService is etcd's own Mutex, used as its documentation shows: a session for each
// client and a Mutex for each name.
var mutexService = service{name: etcdMutex, join: func(ctx context.Context, a *arena) (client, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, err
	}
	session, err := newSession(a, etcd)
	if err != nil {
		return nil, err
	}
	return func(name string) mutex { return concurrency.NewMutex(session, mutexPrefix+name) }, nil
}}

func newSession(a *arena, etcd *clientv3.Client) (*concurrency.Session, error) {
	session, err := concurrency.NewSession(etcd)
	if err != nil {
		return nil, err
	}
	a.onClose(session.Close)
	return session, nil
}

// joinAll returns n clients. Each has locked a name once, so its session is open.
func (s service) joinAll(ctx context.Context, a *arena, n int) ([]client, error) {
	clients := make([]client, n)
	err := each(ctx, n, 16, func(ctx context.Context, i int) (err error) {
		if clients[i], err = s.join(ctx, a); err != nil {
			return err
		}
		return lockUnlock(ctx, clients[i](a.name("w", i)))
	})
	return clients, err
}

func lockUnlock(ctx context.Context, m mutex) error {
	if err := m.Lock(ctx); err != nil {
		return err
	}
	return m.Unlock(ctx)
}
