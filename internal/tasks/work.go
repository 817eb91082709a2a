package tasks

import (
	"container/list"
	"sync"
)

// Backlog does work in goroutines of a group, so much of it at a time: what many calls
// leave behind that were given up at once does not keep them from returning, and a server
// would not take it any faster.
type Backlog struct {
	group *Group
	limit int

	mu      sync.Mutex // guards what follows
	atWork  int
	waiting list.List // of func(), the oldest first
}

// NewBacklog returns a Backlog of at most limit goroutines.
func NewBacklog(g *Group, limit int) *Backlog { return &Backlog{group: g, limit: limit} }

// Run starts work, or has it wait, in which case it reports false. Only what is itself
// counted in the group may call it.
func (b *Backlog) Run(work func()) (started bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.atWork == b.limit {
		b.waiting.PushBack(work)
		return false
	}
	b.atWork++
	b.group.Run(func() {
		for work != nil {
			work()
			work = b.next()
		}
	})
	return true
}

// next returns the work that has waited for the longest, nil if there is none.
func (b *Backlog) next() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.Len() == 0 {
		b.atWork--
		return nil
	}
	return b.waiting.Remove(b.waiting.Front()).(func())
}

// Shared is work whose result those share who ask for it at the same time. The zero value
// is ready to use.
type Shared struct {
	mu      sync.Mutex // guards what follows; the work is not done under it
	present *sharing   // nil while nobody is at it
}

type sharing struct {
	done chan struct{} // closed when err is known
	err  error
}

// Do does the work, or waits for the result of whoever is at it.
func (s *Shared) Do(work func() error) error {
	s.mu.Lock()
	present := s.present
	mine := present == nil
	if mine {
		present = &sharing{done: make(chan struct{})}
		s.present = present
	}
	s.mu.Unlock()
	if !mine {
		<-present.done
		return present.err
	}
	present.err = work()
	s.mu.Lock()
	s.present = nil
	s.mu.Unlock()
	close(present.done)
	return present.err
}
