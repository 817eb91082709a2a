// Package tasks gives every goroutine an owner. A Group counts calls and goroutines that
// are under way; closing it lets nothing begin any more, and joining it waits for the last
// of them:
//
//	Begin ... End      a call of the program
//	Run(f)             a goroutine
//	After(d, f)        a timer, from when it is set until it is stopped or f has returned
//
//	Close              nothing begins any more, but what is under way may start more
//	Join               all of it has ended
package tasks

import (
	"context"
	"sync"
	"time"
)

// Group counts calls and goroutines. The zero value is ready to use. It is safe for
// concurrent use.
type Group struct {
	mu     sync.Mutex // guards closed, so that nothing begins after Join has begun to wait
	closed bool
	wg     sync.WaitGroup
}

// Begin counts in a call, and reports false if the group is closed.
func (g *Group) Begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Add(1)
	}
	return !g.closed
}

// add counts in what ends later with End. Only what is itself counted may call it.
func (g *Group) add() { g.wg.Add(1) }

// End counts out what Begin or add counted in.
func (g *Group) End() { g.wg.Done() }

// Run calls f in a goroutine. Only what is itself counted may call it.
func (g *Group) Run(f func()) { g.wg.Go(f) }

// Close makes Begin report false from now on. It reports false if the group was closed
// before.
func (g *Group) Close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.closed
	g.closed = true
	return !was
}

// Join blocks until everything that was counted has ended. The group must be closed.
func (g *Group) Join() { g.wg.Wait() }

// Alarm is a function that is called later. It is counted until it is stopped or has
// returned.
type Alarm struct {
	group *Group
	timer *time.Timer
}

// After calls f in a goroutine after d. Only what is itself counted may call it.
func (g *Group) After(d time.Duration, f func()) *Alarm {
	g.add()
	return &Alarm{g, time.AfterFunc(d, func() {
		defer g.End()
		f()
	})}
}

// Stop keeps the function from being called. It reports false if the function has been
// called already, or the alarm was stopped before. It does not wait for the function.
func (a *Alarm) Stop() bool {
	stopped := a.timer.Stop()
	if stopped {
		a.group.End()
	}
	return stopped
}

// Either returns a copy of ctx that also ends with other, with the cause of the one that
// ends first. The caller must call the function, which releases what the copy takes.
func Either(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if other.Err() != nil {
		cancel(context.Cause(other))
		return ctx, func() {}
	}
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() { stop(); cancel(nil) }
}
