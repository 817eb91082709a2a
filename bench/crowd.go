package main

import (
	"context"
	"errors"

	"github.com/jagregory/locker/v2"
)

const (
	requests     figure = "requests"      // per hand-over
	idleMessages figure = "idle messages" // per second and client

	aTenth = "a tenth" // the side with a tenth of the work

	clientsPerConnection = 100
	handOversCounted     = 300 // at least
)

// crowd counts the messages that n clients send while they wait for a name, and those that
// they send beyond that while they pass it on.
func crowd(name string, n int) side {
	return side{name: name, open: func(ctx context.Context, a *arena) (round, error) {
		observer, err := a.connect()
		if err != nil {
			return nil, err
		}
		connections, err := a.connections(ctx, (n+clientsPerConnection)/clientsPerConnection)
		if err != nil {
			return nil, err
		}
		clients, err := newLockers(a, connections, n+1, locker.WithTTL(longTTL))
		if err != nil {
			return nil, err
		}
		err = each(ctx, len(clients), joiningTogether, func(ctx context.Context, i int) error { // opens the sessions
			return lockUnlock(ctx, &lockerMutex{client: clients[i], name: a.name("w", i)})
		})
		return func(ctx context.Context) (figures, error) {
			r := newRelay(ctx, a.name("n", 0), handOversCounted, a.workload.period)
			defer r.end()
			if err := r.gather(observer, clients); err != nil {
				return nil, err
			}
			if err := pause(ctx, settling); err != nil {
				return nil, err
			}
			quiet := a.traffic.now()
			if err := pause(ctx, a.workload.idle); err != nil {
				return nil, err
			}
			busy := a.traffic.now()
			if err := r.handOvers(); err != nil {
				return nil, err
			}
			idle, all := busy.since(quiet), a.traffic.now().since(busy)
			rest := all.beyond(idle).sent
			if rest <= 0 {
				return nil, errors.New("hand-overs cannot be told from idle traffic")
			}
			return figures{requests: rest / float64(len(r.times)), idleMessages: idle.sent / idle.seconds / float64(n)}, nil
		}, err
	}}
}
