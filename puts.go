package locker

import (
	"context"
	"sync"
)

// puts counts the attempts to put an entry that may yet take effect: those under
// way, and those that ended without an answer.
type puts struct {
	mu       sync.Mutex // guards what follows
	underWay int
	epoch    int64         // the largest that one carries
	lost     bool          // at least one was never answered
	fenced   bool          // none can take effect any more
	landed   chan struct{} // closed when none is under way; nil if nobody waits
}

func (p *puts) begin(epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.underWay++
	p.epoch = max(p.epoch, epoch)
}

// newest returns the largest epoch that one carries.
func (p *puts) newest() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

func (p *puts) end(answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = p.lost || !answered
	if p.underWay--; p.underWay == 0 && p.landed != nil {
		close(p.landed)
		p.landed = nil
	}
}

// fence notes that those begun so far cannot take effect any more; none may follow.
func (p *puts) fence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fenced = true
}

// any reports whether one may yet take effect.
func (p *puts) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.fenced && (p.underWay > 0 || p.lost)
}

// wait returns when none is under way, or ctx has ended.
func (p *puts) wait(ctx context.Context) {
	p.mu.Lock()
	if p.fenced || p.underWay == 0 {
		p.mu.Unlock()
		return
	}
	if p.landed == nil {
		p.landed = make(chan struct{})
	}
	landed := p.landed
	p.mu.Unlock()
	select {
	case <-landed:
	case <-ctx.Done():
	}
}
