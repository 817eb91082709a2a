package main

import (
	"context"
	"sync"
)

// gate is open, or closed for a reason.
type gate struct {
	mu     sync.Mutex // guards what follows
	reason error      // why it is closed; nil while it is open
	opens  chan struct{}
	open   context.Context // of the last time it was open; ends with the reason
	shut   context.CancelCauseFunc
}

func newGate(reason error) *gate {
	return &gate{reason: reason, opens: make(chan struct{})}
}

// set opens the gate if the reason is nil, else it closes it, or changes the reason.
func (g *gate) set(reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.reason
	g.reason = reason
	switch {
	case was != nil && reason == nil:
		g.open, g.shut = context.WithCancelCause(context.Background())
		close(g.opens)
	case was == nil && reason != nil:
		g.shut(reason)
		g.opens = make(chan struct{})
	}
}

// why returns why the gate is closed, nil if it is open.
func (g *gate) why() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reason
}

// wait waits until the gate is open. The context it returns ends with ctx, or when the
// gate closes, with the reason as its cause; leave must be called. An error is the cause
// of ctx.
func (g *gate) wait(ctx context.Context) (_ context.Context, leave func(), err error) {
	for {
		g.mu.Lock()
		opens, open, reason := g.opens, g.open, g.reason
		g.mu.Unlock()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if reason == nil {
			through, cancel := context.WithCancelCause(ctx)
			stop := context.AfterFunc(open, func() { cancel(context.Cause(open)) })
			return through, func() { stop(); cancel(nil) }, nil
		}
		select {
		case <-opens:
		case <-ctx.Done():
		}
	}
}
