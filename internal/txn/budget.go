package txn

import (
	"context"
	"sync"
	"time"

	"github.com/jagregory/locker/v2/internal/backoff"
)

// budget bounds how many requests of a client are hedged within a hedge delay. A hedge
// that is answered first has helped, and more may follow; one that is not has Found nothing
// but a slow link, and burdened it. (gRPC's own budget has retry throttling for that.)
type budget struct {
	mu     sync.Mutex // guards what follows
	window int        // how many may be new: under way, and not for longer than the hedge delay
	fresh  int
}

const (
	fewestHedges = 8
	firstHedges  = 16
	mostHedges   = 1 << 12
)

// wait counts a hedge in when there is room, and reports false if ctx has ended before.
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

// leave counts out a hedge that has ended, or is not new any more.
func (h *budget) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fresh--
}

// judge takes in what became of a hedge: helped tells that it was answered, and late that
// the request was answered without it.
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
