package main

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

// mutex is a name as one goroutine locks it, over and over. The methods are those of concurrency.Mutex.
type mutex interface {
	Lock(ctx context.Context) error
	Unlock(ctx context.Context) error
}

// service is something that locks names.
type service struct {
	name string
	peer bool
	// join returns the names of a new client, which has a connection of its own.
	join func(ctx context.Context, a *arena) (client, error)
}

// client returns a new mutex on a name.
type client func(name string) mutex

// The prefixes of keys: of the same length, so that the keys are as well.
const (
	lockerPrefix = "locker/"
	mutexPrefix  = "mutual/"
	floorPrefix  = "floors/"
)

var lockers = service{name: ours, join: func(ctx context.Context, a *arena) (client, error) {
	etcd, err := a.connect()
	if err != nil {
		return nil, err
	}
	c, err := newLocker(a, etcd)
	if err != nil {
		return nil, err
	}
	return func(name string) mutex { return &lockerMutex{client: c, name: name} }, nil
}}

func newLocker(a *arena, etcd *clientv3.Client, opts ...locker.Option) (*locker.Client, error) {
	c, err := locker.New(etcd, append(opts, locker.WithPrefix(lockerPrefix))...)
	if err != nil {
		return nil, err
	}
	a.onClose(c.Close)
	return c, nil
}

// lockerMutex keeps the hold between Lock and Unlock.
type lockerMutex struct {
	client *locker.Client
	name   string
	held   *locker.Lock
}

func (m *lockerMutex) Lock(ctx context.Context) (err error) {
	m.held, err = m.client.Lock(ctx, m.name, "") // a Mutex has no value either
	return err
}

func (m *lockerMutex) Unlock(ctx context.Context) error { return m.held.Unlock(ctx) }

// mutexes are etcd's own, as its documentation shows them: a session for each client, a Mutex for each name.
var mutexes = service{name: mutual, join: func(ctx context.Context, a *arena) (client, error) {
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

// joinAll returns n clients, each of which has used its session: nothing is left to be opened.
func (s service) joinAll(ctx context.Context, a *arena, n int) ([]client, error) {
	clients := make([]client, n)
	err := each(ctx, n, 16, func(ctx context.Context, i int) (err error) {
		if clients[i], err = s.join(ctx, a); err != nil {
			return err
		}
		return lockOnce(ctx, clients[i](a.name("w", i)))
	})
	return clients, err
}

func lockOnce(ctx context.Context, m mutex) error {
	if err := m.Lock(ctx); err != nil {
		return err
	}
	return m.Unlock(ctx)
}
