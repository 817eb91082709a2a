// Package tasks gives every goroutine an owner. A Group counts what is under way, calls and
// goroutines alike, and whoever closes it waits for the last of them:
//
//	Begin ... End      a call of the program
//	Run(f)             a goroutine
//	After(d, f)        a timer, from when it is set until it was stopped or f has returned
//
//	Close              nothing begins any more, but what is under way may start more
//	Join               all of it has ended
package tasks

import (
	"context"
	"sync"
	"time"
)

// Group counts calls and goroutines. The zero value is ready to use, also concurrently.
type Group struct {
	mu     sync.Mutex // guards closed, so that none begins after Join has begun to wait
	closed bool
	wg     sync.WaitGroup
}

// Begin counts a call in, and reports false once the group is closed.
func (g *Group) Begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Add(1)
	}
	return !g.closed
}

// Add counts in what is to end later. Only what is itself counted may call it.
func (g *Group) Add() { g.wg.Add(1) }

// End counts out what Begin or Add counted in.
func (g *Group) End() { g.wg.Done() }

// Run starts a goroutine. Only what is itself counted may call it.
func (g *Group) Run(f func()) { g.wg.Go(f) }

// Close lets none begin any more, and reports false if the group was closed before.
func (g *Group) Close() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.closed
	g.closed = true
	return !was
}

// Join waits until all have ended. The group must be closed.
func (g *Group) Join() { g.wg.Wait() }

// Alarm is a function that is called later. It is counted until it was stopped or has
// returned.
type Alarm struct {
	group *Group
	timer *time.Timer
}

// After has f called after d. Only what is itself counted may call it.
func (g *Group) After(d time.Duration, f func()) *Alarm {
	g.Add()
	return &Alarm{g, time.AfterFunc(d, func() {
		defer g.End()
		f()
	})}
}

// Stop keeps the function from being called, and reports false if that has begun, or the
// alarm was stopped before.
func (a *Alarm) Stop() bool {
	stopped := a.timer.Stop()
	if stopped {
		a.group.End()
	}
	return stopped
}

// Either returns a copy of ctx that ends with other as well, with the cause of whichever
// ended first. The function releases what it takes; it must be called.
func Either(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if other.Err() != nil {
		cancel(context.Cause(other))
		return ctx, func() {}
	}
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() { stop(); cancel(nil) }
}
