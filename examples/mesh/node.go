package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

// node is one service of the mesh.
type node struct {
	client *locker.Client
	name   string
	record record
	settle time.Duration // how long everything must be ready before the node serves
	health *health
	log    *log.Logger

	canServe *gate // open while nothing prevents the node from serving
	serving  atomic.Bool

	mu      sync.Mutex // guards the fields below
	mesh    mesh
	token   int64         // of the node's hold of its ready name; 0 if it does not hold it
	changed chan struct{} // closed when mesh or token changes
}

func newNode(client *locker.Client, name string, r record, settle time.Duration, logger *log.Logger) *node {
	return &node{
		client:   client,
		name:     name,
		record:   r,
		settle:   settle,
		health:   newHealth(),
		log:      logger,
		canServe: newGate(errNotReady),
		mesh:     make(mesh),
		changed:  make(chan struct{}),
	}
}

// run runs the node until ctx ends, and returns nil in that case, or until etcd refuses a
// request. The node holds nothing when run returns.
func (n *node) run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return n.watchMesh(ctx) })
	tasks.Go(func() error { return n.decide(ctx) })
	tasks.Go(func() error { return n.holdWhileOpen(ctx, n.health.gate, readyPrefix, n.holdReady) })
	tasks.Go(func() error { return n.holdWhileOpen(ctx, n.canServe, servingPrefix, n.serve) })
	return tasks.Wait()
}

// holdWhileOpen campaigns for one of the node's names while the gate is open, and
// releases it as soon as the gate closes, until ctx ends.
func (n *node) holdWhileOpen(ctx context.Context, g *gate, prefix string, hold func(context.Context, *locker.Lock) error) error {
	for {
		openCtx, release, err := g.wait(ctx)
		if err != nil {
			return nil
		}
		r := n.record
		r.Since = time.Now()
		err = n.client.Campaign(openCtx, prefix+n.name, r.String(), hold)
		closed := openCtx.Err() != nil
		release()
		if stopped := (*stoppedError)(nil); errors.As(err, &stopped) {
			n.log.Print(stopped) // only now, so that logging does not delay the release of the record
		}
		if !closed {
			return err
		}
	}
}

// holdReady runs while the node holds its ready name.
func (n *node) holdReady(ctx context.Context, ready *locker.Lock) error {
	n.setReadyToken(ready.Token())
	<-ctx.Done()
	n.setReadyToken(0)
	return nil
}

// serve runs while the node holds its record. ctx ends when the record is lost, when the
// node is unhealthy, when something it needs is down, and when the program ends.
func (n *node) serve(ctx context.Context, lock *locker.Lock) error {
	n.serving.Store(true)
	n.log.Printf("serving, token %d", lock.Token())
	<-ctx.Done()
	n.serving.Store(false)
	if err := lock.Err(); errors.Is(err, locker.ErrLost) {
		n.log.Printf("lost its record: %v; stopped serving, trying to get it back", err)
		return nil
	}
	return &stoppedError{context.Cause(ctx)}
}

// stoppedError reports why a node has released its record.
type stoppedError struct{ cause error }

func (e *stoppedError) Error() string { return "stopped serving: " + e.cause.Error() }

// watchMesh keeps the state of the mesh up to date.
func (n *node) watchMesh(ctx context.Context) error {
	for state, err := range n.client.WatchPrefix(ctx, "") {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		n.observe(state)
	}
	return nil
}

// observe applies a change, and logs it if it concerns a service that the node needs.
func (n *node) observe(state locker.State) {
	if message := n.update(state); message != "" {
		n.log.Print(message)
	}
}

// update applies a change, and returns what to log about it.
func (n *node) update(state locker.State) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, _, ok := parseName(state.Name)
	if !ok {
		return ""
	}
	before := n.mesh.serves(name)
	n.mesh.apply(state)
	n.notify()
	now := n.mesh.serves(name)
	switch {
	case now == before || !slices.Contains(n.record.Needs, name):
		return ""
	case now:
		return fmt.Sprintf("dependency %s is up at %s", name, printable(n.mesh[name].Address))
	case n.record.Cascade:
		return "dependency " + name + " is down"
	}
	return "dependency " + name + " is down; continuing without it"
}

// setReadyToken sets the token with which the node holds its ready name, 0 if it does not
// hold it.
func (n *node) setReadyToken(token int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.token = token
	n.notify()
}

// notify wakes decide. n.mu is held.
func (n *node) notify() {
	close(n.changed)
	n.changed = make(chan struct{})
}

var (
	errNotReady = errors.New("waiting to become ready: another node has this name, or etcd does not answer")
	errSettling = errors.New("waiting for the settle time to pass")
)

// decide opens and closes the gate to serving. It closes the gate immediately, and opens
// it once everything has been ready for the whole settle time. So a dependency that flaps
// takes the node down no more than once in that time.
func (n *node) decide(ctx context.Context) error {
	var readySince time.Time // since when everything it needs has been ready
	for logged := ""; ; {
		changed, causes, prerequisites := n.assess()
		obstacle, settled := causes, (<-chan time.Time)(nil)
		switch {
		case causes != nil:
			readySince = time.Time{}
		case readySince.IsZero():
			readySince = time.Now()
		}
		if causes == nil {
			if left := n.settle - time.Since(readySince); left > 0 {
				obstacle, settled = errSettling, time.After(left)
			} else {
				obstacle = prerequisites
			}
		}
		serving := n.serving.Load() // if so, serve reports the reason when it stops
		n.canServe.set(obstacle)
		problem := problemKey(causes)
		if problem != "" && problem != logged && !serving {
			n.log.Printf("cannot serve: %v", causes)
		}
		logged = problem
		select {
		case <-changed:
		case <-n.health.changed:
		case <-settled:
		case <-ctx.Done():
			return nil
		}
	}
}

// problemKey identifies a problem regardless of its wording. It returns "" if there is
// nothing to report.
func problemKey(causes error) string {
	var unavailable *downError
	var unhealthy *unhealthyError
	switch {
	case errors.As(causes, &unavailable):
		return unavailable.Error()
	case errors.As(causes, &unhealthy):
		return "unhealthy"
	}
	return ""
}

// assess returns a channel that is closed at the next change, the reason why the node
// cannot serve, and the services that must serve before it does.
func (n *node) assess() (changed <-chan struct{}, causes, prerequisites error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	self := n.mesh.add(n.name)
	// Once the watch shows the current hold, the state is newer than that hold: after an
	// interruption, the node does not trust what it saw before.
	if n.token == 0 || !self.ready.Held || self.ready.Token != n.token {
		return n.changed, cmp.Or(n.health.err(), errNotReady), nil
	}
	if services := n.mesh.causes(n.name); len(services) > 0 {
		causes = &downError{services}
	}
	if services := n.mesh.prerequisites(n.name); n.record.Cascade && len(services) > 0 {
		prerequisites = &downError{services}
	}
	return n.changed, causes, prerequisites
}

// downError lists the services that prevent a node from serving.
type downError struct{ services []string }

func (e *downError) Error() string {
	if len(e.services) == 1 {
		return e.services[0] + " is down"
	}
	return joinNames(e.services) + " are down"
}
