package txn

import (
	"context"
	"sync"
	"time"

	"github.com/jagregory/locker/v2/internal/backoff"
)

// budget bounds how many requests of a Store are hedged within a hedge delay. A hedge that
// is answered first has helped, and more may follow. A hedge that is not has shown nothing
// but a slow link, and added to its load. (gRPC throttles retries for the same reason.)
type budget struct {
	mu     sync.Mutex // guards what follows
	window int        // how many hedges may be fresh
	fresh  int        // hedges under way for less than the hedge delay
}

const (
	fewestHedges = 8
	firstHedges  = 16
	mostHedges   = 1 << 12
)

// wait counts in a hedge as soon as there is room for it, and reports false if ctx ends
// first.
func (b *budget) wait(ctx context.Context, interval time.Duration) bool {
	for ctx.Err() == nil {
		if b.begin() {
			return true
		}
		_ = backoff.Sleep(ctx, interval)
	}
	return false
}

func (b *budget) begin() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fresh >= b.window {
		return false
	}
	b.fresh++
	return true
}

// leave counts out a hedge that has ended or is not fresh any more.
func (b *budget) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fresh--
}

// judge takes in what became of a hedge: helped means that it was answered for certain,
// late that the first attempt was answered before it.
func (b *budget) judge(helped, late bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case late:
		b.window = max(fewestHedges, b.window/2)
	case helped:
		b.window = min(2*b.window, mostHedges)
	}
}
