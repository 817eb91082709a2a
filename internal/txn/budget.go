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
func (h *budget) wait(ctx context.Context, interval time.Duration) bool {
	for ctx.Err() == nil {
		if h.begin() {
			return true
		}
		_ = backoff.Sleep(ctx, interval)
	}
	return false
}

func (h *budget) begin() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fresh >= h.window {
		return false
	}
	h.fresh++
	return true
}

// leave counts out a hedge that has ended or is not fresh any more.
func (h *budget) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fresh--
}

// judge takes in what became of a hedge: helped means that it was answered for certain,
// late that the first attempt was answered before it.
func (h *budget) judge(helped, late bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case late:
		h.window = max(fewestHedges, h.window/2)
	case helped:
		h.window = min(2*h.window, mostHedges)
	}
}
