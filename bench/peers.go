package main

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/go-zookeeper/zk"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
)

// peerAddresses holds the addresses of the servers of the peers. Peers without an address
// are not measured.
type peerAddresses struct{ redis, zookeeper string }

// known reports whether the address of a peer's server is known.
func (p peerAddresses) known(peer string) bool {
	if peer == zookeeperService.name {
		return p.zookeeper != ""
	}
	return p.redis != ""
}

const (
	peerTTL = 10 * time.Second     // Locker's default
	polling = 2 * time.Millisecond // much more often than the default of the peers that poll
)

// ofPeers returns the side that do makes of each peer.
func ofPeers(do func(s service) side) []side {
	var sides []side
	for _, s := range []service{redislockService, redsyncService, rueidislockService, zookeeperService} {
		sides = append(sides, do(s))
	}
	return sides
}

// newRedis returns a client that does not make 256 goroutines wait for connections.
func newRedis(a *arena) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: a.peers.redis, PoolSize: 256})
	a.onClose(c.Close)
	return c
}

var redislockService = service{name: "redislock", peer: true, join: func(ctx context.Context, a *arena) (client, error) {
	locks := redislock.New(newRedis(a))
	return func(name string) mutex { return &redislockMutex{locks: locks, name: name} }, nil
}}

type redislockMutex struct {
	locks *redislock.Client
	name  string
	held  *redislock.Lock
}

func (m *redislockMutex) Lock(ctx context.Context) (err error) {
	m.held, err = m.locks.Obtain(ctx, m.name, peerTTL, &redislock.Options{RetryStrategy: redislock.LinearBackoff(polling)})
	return err
}

func (m *redislockMutex) Unlock(ctx context.Context) error { return m.held.Release(ctx) }

var redsyncService = service{name: "redsync", peer: true, join: func(ctx context.Context, a *arena) (client, error) {
	rs := redsync.New(goredis.NewPool(newRedis(a)))
	return func(name string) mutex {
		return redsyncMutex{rs.NewMutex(name, redsync.WithExpiry(peerTTL), redsync.WithTries(math.MaxInt), redsync.WithRetryDelay(polling))}
	}, nil
}}

type redsyncMutex struct{ *redsync.Mutex }

func (m redsyncMutex) Lock(ctx context.Context) error { return m.LockContext(ctx) }

func (m redsyncMutex) Unlock(ctx context.Context) error {
	_, err := m.UnlockContext(ctx)
	return err
}

var rueidislockService = service{name: "rueidislock", peer: true, join: func(ctx context.Context, a *arena) (client, error) {
	locks, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption:   rueidis.ClientOption{InitAddress: []string{a.peers.redis}},
		KeyMajority:    1,
		KeyValidity:    peerTTL,
		NoLoopTracking: true,
	})
	if err != nil {
		return nil, err
	}
	a.onClose(func() error { locks.Close(); return nil })
	return func(name string) mutex { return &rueidisMutex{locks: locks, name: name} }, nil
}}

type rueidisMutex struct {
	locks   rueidislock.Locker
	name    string
	release context.CancelFunc
}

func (m *rueidisMutex) Lock(ctx context.Context) (err error) {
	_, m.release, err = m.locks.WithContext(ctx, m.name)
	return err
}

func (m *rueidisMutex) Unlock(context.Context) error {
	m.release()
	return nil
}

var zookeeperService = service{name: "zookeeper", peer: true, join: func(ctx context.Context, a *arena) (client, error) {
	conn, _, err := zk.Connect(strings.Split(a.peers.zookeeper, ","), peerTTL, zk.WithLogger(noLogger{}))
	if err != nil {
		return nil, err
	}
	a.onClose(func() error { conn.Close(); return nil })
	return func(name string) mutex {
		return &zookeeperMutex{recipe: zk.NewLock(conn, "/"+name, zk.WorldACL(zk.PermAll))}
	}, nil
}}

// noLogger is a zk.Logger that discards everything.
type noLogger struct{}

func (noLogger) Printf(string, ...any) {}

// zookeeperMutex is the lock recipe, which cannot be interrupted: a Lock that was stays in
// the queue, and the next one takes over its place.
type zookeeperMutex struct {
	recipe interface {
		Lock() error
		Unlock() error
	}
	queued chan error // receives when the recipe's Lock returns; nil if none has begun
}

func (m *zookeeperMutex) Lock(ctx context.Context) error {
	if m.queued == nil {
		m.queued = make(chan error, 1)
		go func(queued chan<- error) { queued <- m.recipe.Lock() }(m.queued)
	}
	select {
	case err := <-m.queued:
		m.queued = nil
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *zookeeperMutex) Unlock(context.Context) error { return m.recipe.Unlock() }
