// Package backoff spaces attempts by pauses that grow, and that are spread at random, so
// that clients that failed together do not come back together:
//
//	10  20  40  80  160  320  500  500 … ms, each ± 50 %
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of a pause, before it is spread by up to half of it in either direction.
const (
	Shortest = 10 * time.Millisecond
	longest  = 500 * time.Millisecond
)

// Pause is a growing pause between attempts. The zero value is ready to use, and begins
// with the shortest pause.
type Pause struct{ last time.Duration }

// Next returns the length of the next pause. It does not wait.
func (p *Pause) Next() time.Duration {
	p.last = min(max(2*p.last, Shortest), longest)
	return p.last/2 + rand.N(p.last)
}

// Wait blocks for the next pause and returns nil, or the error of ctx if that ends first.
func (p *Pause) Wait(ctx context.Context) error { return Sleep(ctx, p.Next()) }

// Sleep blocks for d and returns nil, or the error of ctx if that ends first.
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
