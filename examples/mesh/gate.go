package main

import (
	"context"
	"sync"
)

// gate is either open, or closed for a reason.
type gate struct {
	mu       sync.Mutex      // guards the fields below
	reason   error           // why the gate is closed; nil while it is open
	opened   chan struct{}   // closed when the gate opens; replaced when it closes
	openCtx  context.Context // ends when the gate closes, with the reason as its cause
	closeCtx context.CancelCauseFunc
}

func newGate(reason error) *gate {
	return &gate{reason: reason, opened: make(chan struct{})}
}

// set opens the gate if reason is nil. Otherwise it closes the gate, or changes the
// reason.
func (g *gate) set(reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.reason
	g.reason = reason
	switch {
	case was != nil && reason == nil:
		g.openCtx, g.closeCtx = context.WithCancelCause(context.Background())
		close(g.opened)
	case was == nil && reason != nil:
		g.closeCtx(reason)
		g.opened = make(chan struct{})
	}
}

// err returns why the gate is closed, or nil if it is open.
func (g *gate) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reason
}

// wait waits until the gate is open. The context it returns ends with ctx, or when the
// gate closes, with the reason as its cause; the caller must call release. If ctx ends
// first, wait returns its cause.
func (g *gate) wait(ctx context.Context) (_ context.Context, release func(), err error) {
	for {
		g.mu.Lock()
		opened, open, reason := g.opened, g.openCtx, g.reason
		g.mu.Unlock()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if reason == nil {
			inner, cancel := context.WithCancelCause(ctx)
			stop := context.AfterFunc(open, func() { cancel(context.Cause(open)) })
			return inner, func() { stop(); cancel(nil) }, nil
		}
		select {
		case <-opened:
		case <-ctx.Done():
		}
	}
}
