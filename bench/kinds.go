package main

import (
	"context"
	"time"

	"github.com/jagregory/locker/v2"
)

// The sides that Locker is compared with when other kinds of locks are measured.
const (
	freeName = "free name"
	oneName  = "one name"
)

// sharedBeside repeatedly takes and releases a shared lock of a name that n others share, as
// holders of other clients.
func sharedBeside(name string, n int) side {
	shared := lockerWith(locker.WithShared())
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		connections, err := a.connections(ctx, (n+clientsPerConnection-1)/clientsPerConnection)
		if err != nil {
			return nil, err
		}
		holders, err := newLockers(a, connections, len(connections), locker.WithTTL(longTTL))
		if err != nil {
			return nil, err
		}
		err = each(ctx, n, joiningTogether, func(ctx context.Context, i int) error {
			_, err := holders[i%len(holders)].Lock(ctx, a.name("n", 0), "", locker.WithShared()) // released by Close
			return err
		})
		if err != nil {
			return nil, err
		}
		return uncontended(shared).open(ctx, a)
	}}
}

// A limited lock is measured with clients that hold it for the time of their work. A side
// without any locks does as much as the limit allows.
const (
	limit          = 8
	limitedClients = 64
	limitedWork    = 5 * time.Millisecond
)

// withoutLocks is not measured: it is what as many clients as the limit admits would do if
// nothing but their work took any time.
var withoutLocks = side{name: "work alone", open: func(context.Context, *arena) (round, error) {
	return func(context.Context) (figures, error) { return figures{rate: limit / limitedWork.Seconds()}, nil }, nil
}}

// limited is a race of clients that work while they hold the one name, each with its own
// connection.
var limited = clientsOnOneName(working(lockerWith(locker.WithLimit(limit)), limitedWork), limitedClients)

// working is a service whose holders work before they unlock.
func working(s service, work time.Duration) service {
	join := s.join
	s.join = func(ctx context.Context, a *arena) (client, error) {
		c, err := join(ctx, a)
		return func(name string) mutex { return worker{c(name), work} }, err
	}
	return s
}

// worker is a mutex whose holder works, for which it sleeps, before it unlocks.
type worker struct {
	mutex
	work time.Duration
}

func (w worker) Unlock(ctx context.Context) error {
	if err := pause(ctx, w.work); err != nil {
		return err
	}
	return w.mutex.Unlock(ctx)
}

// together is how many names are locked in one lock.
const together = 10

// namesTogether repeatedly locks and unlocks n free names in one lock.
func namesTogether(name string, n int) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		var others []locker.LockOption
		for _, other := range a.names("n", n)[1:] {
			others = append(others, locker.And(other, ""))
		}
		return uncontended(lockerWith(others...)).open(ctx, a)
	}}
}
