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
	settle time.Duration // for how long all has to be well before it serves
	health *health
	log    *log.Logger

	way     *gate // open while nothing keeps the node from serving
	serving atomic.Bool

	mu      sync.Mutex // guards what follows
	mesh    picture
	token   int64         // of the readiness that the node holds; 0 if it holds none
	changed chan struct{} // closed at a change of the two
}

func newNode(client *locker.Client, name string, r record, settle time.Duration, logger *log.Logger) *node {
	return &node{
		client:  client,
		name:    name,
		record:  r,
		settle:  settle,
		health:  newHealth(),
		log:     logger,
		way:     newGate(errNotReady),
		mesh:    make(picture),
		changed: make(chan struct{}),
	}
}

// run is the service's life in the mesh. It ends with ctx, without an error, or when
// etcd refuses, and holds nothing then.
func (n *node) run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return n.watch(ctx) })
	tasks.Go(func() error { return n.decide(ctx) })
	tasks.Go(func() error { return n.whenever(ctx, n.health.gate, readyPrefix, n.stand) })
	tasks.Go(func() error { return n.whenever(ctx, n.way, servingPrefix, n.serve) })
	return tasks.Wait()
}

// whenever campaigns for a name of the node while the gate is open, and gives it up as
// soon as the gate closes, until ctx ends.
func (n *node) whenever(ctx context.Context, g *gate, prefix string, hold func(context.Context, *locker.Lock) error) error {
	for {
		open, leave, err := g.wait(ctx)
		if err != nil {
			return nil
		}
		r := n.record
		r.Since = time.Now()
		err = n.client.Campaign(open, prefix+n.name, r.String(), hold)
		closed := open.Err() != nil
		leave()
		if stopped := (*stoppedError)(nil); errors.As(err, &stopped) {
			n.log.Print(stopped) // now that the record is given up, which is not to wait for this
		}
		if !closed {
			return err
		}
	}
}

// stand is the time of a readiness.
func (n *node) stand(ctx context.Context, ready *locker.Lock) error {
	n.holds(ready.Token())
	<-ctx.Done()
	n.holds(0)
	return nil
}

// serve is what the service is for. ctx ends when the record is lost, when the node is
// unhealthy, when something it needs is down, and at the end of the program.
func (n *node) serve(ctx context.Context, record *locker.Lock) error {
	n.serving.Store(true)
	n.log.Printf("serves, token %d", record.Token())
	<-ctx.Done()
	n.serving.Store(false)
	if err := record.Err(); errors.Is(err, locker.ErrLost) {
		n.log.Printf("has lost its record: %v; stops, and tries to get it back", err)
		return nil
	}
	return &stoppedError{context.Cause(ctx)}
}

// stoppedError says why a node has given up its record.
type stoppedError struct{ cause error }

func (e *stoppedError) Error() string { return "stops serving: " + e.cause.Error() }

// watch keeps the picture of the mesh.
func (n *node) watch(ctx context.Context) error {
	for state, err := range n.client.WatchPrefix(ctx, "") {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		n.learn(state)
	}
	return nil
}

// learn takes in one change, and says so if the node needs the service.
func (n *node) learn(state locker.State) {
	if news := n.note(state); news != "" {
		n.log.Print(news)
	}
}

// note takes in one change and returns what there is to say of it.
func (n *node) note(state locker.State) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, _, ok := parseName(state.Name)
	if !ok {
		return ""
	}
	before := n.mesh.serves(name)
	n.mesh.take(state)
	n.notify()
	now := n.mesh.serves(name)
	switch {
	case now == before || !slices.Contains(n.record.Needs, name):
		return ""
	case now:
		return fmt.Sprintf("%s, which it needs, is up at %s", name, printable(n.mesh[name].Address))
	case n.record.Cascade:
		return name + ", which it needs, is down"
	}
	return name + ", which it needs, is down; goes on without it"
}

// holds tells with which token the node holds its readiness, 0 if it does not.
func (n *node) holds(token int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.token = token
	n.notify()
}

// notify tells decide to look again. n.mu is held.
func (n *node) notify() {
	close(n.changed)
	n.changed = make(chan struct{})
}

var (
	errNotReady = errors.New("it waits to be ready: another of its name is, or etcd does not answer")
	errSettling = errors.New("all it needs is ready, but not for long enough yet")
)

// decide opens and closes the way to serving: it closes at once, and opens after all has
// been well for the settle time without a break. So what goes up and down quickly takes
// nothing up and down with it more often than once in that time.
func (n *node) decide(ctx context.Context) error {
	var well time.Time // since when all that it needs is ready
	for said := ""; ; {
		changed, causes, ahead := n.look()
		obstacle, settled := causes, (<-chan time.Time)(nil)
		switch {
		case causes != nil:
			well = time.Time{}
		case well.IsZero():
			well = time.Now()
		}
		if causes == nil {
			if left := n.settle - time.Since(well); left > 0 {
				obstacle, settled = errSettling, time.After(left)
			} else {
				obstacle = ahead
			}
		}
		serving := n.serving.Load() // then the reason is told when it has stopped
		n.way.set(obstacle)
		problem := problemOf(causes)
		if problem != "" && problem != said && !serving {
			n.log.Printf("cannot serve: %v", causes)
		}
		said = problem
		select {
		case <-changed:
		case <-n.health.changed:
		case <-settled:
		case <-ctx.Done():
			return nil
		}
	}
}

// problemOf tells one problem from another, whatever words it is in: nothing if causes are
// none to speak of.
func problemOf(causes error) string {
	var down *downError
	var unwell *unwellError
	switch {
	case errors.As(causes, &down):
		return down.Error()
	case errors.As(causes, &unwell):
		return "unwell"
	}
	return ""
}

// look returns what is closed when there is something new to see, what keeps the node from
// serving, and what it needs that does not serve though it could.
func (n *node) look() (changed <-chan struct{}, causes, ahead error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	self := n.mesh.add(n.name)
	// A picture that shows the hold of now is newer than the hold: after the node was cut
	// off it does not trust what it saw before.
	if n.token == 0 || !self.ready.Held || self.ready.Token != n.token {
		return n.changed, cmp.Or(n.health.why(), errNotReady), nil
	}
	if down := n.mesh.causes(n.name); len(down) > 0 {
		causes = &downError{down}
	}
	if missing := n.mesh.ahead(n.name); n.record.Cascade && len(missing) > 0 {
		ahead = &downError{missing}
	}
	return n.changed, causes, ahead
}

// downError says which services keep a node from serving.
type downError struct{ services []string }

func (e *downError) Error() string {
	if len(e.services) == 1 {
		return e.services[0] + " is down"
	}
	return enumerate(e.services) + " are down"
}
