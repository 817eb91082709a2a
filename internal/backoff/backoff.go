// Package backoff spaces attempts: by pauses that grow, and that are spread at random, so
// that clients that failed together do not come back together.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of a pause, before it is spread by half of it to either side.
const (
	Shortest = 10 * time.Millisecond
	Longest  = 500 * time.Millisecond
)

// Pause is a growing pause between attempts. The zero value is ready to use, and the
// shortest.
type Pause struct{ last time.Duration }

// Next returns how long to pause now.
func (p *Pause) Next() time.Duration {
	p.last = min(max(2*p.last, Shortest), Longest)
	return p.last/2 + rand.N(p.last)
}

// Wait returns nil after the pause, or the error of ctx when it ends before.
func (p *Pause) Wait(ctx context.Context) error { return Sleep(ctx, p.Next()) }

// Sleep returns nil after d, or the error of ctx when it ends before.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
