package tasks

import (
	"container/list"
	"sync"
)

// Backlog does work in a limited number of goroutines of a group. Many calls that are given
// up at once leave work behind: none of them has to wait for it, and a server would not
// take it any faster.
type Backlog struct {
	group *Group
	limit int

	mu      sync.Mutex // guards what follows
	atWork  int        // goroutines
	waiting list.List  // of func(), the oldest first
}

// NewBacklog returns a Backlog that uses at most limit goroutines at a time.
func NewBacklog(g *Group, limit int) *Backlog { return &Backlog{group: g, limit: limit} }

// Run starts work in a goroutine, or queues it until one is free and reports false. It does
// not block. Only what is itself counted in the group may call it. Work is started in the order
// of the calls; with a limit of 1, one begins when the one before it has ended, even if that was
// by runtime.Goexit.
func (b *Backlog) Run(work func()) (started bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.atWork == b.limit {
		b.waiting.PushBack(work)
		return false
	}
	b.atWork++
	b.group.Run(func() { b.run(work) })
	return true
}

// run does work, and then what is waiting.
func (b *Backlog) run(work func()) {
	returned := false
	defer func() {
		if !returned { // the goroutine ends: another goes on
			b.group.Run(func() { b.run(b.next()) })
		}
	}()
	for work != nil {
		work()
		work = b.next()
	}
	returned = true
}

// next returns the work that has waited longest, nil if there is none.
func (b *Backlog) next() func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.Len() == 0 {
		b.atWork--
		return nil
	}
	return b.waiting.Remove(b.waiting.Front()).(func())
}

// Shared is work whose result is shared by all that ask for it at the same time. The zero
// value is ready to use. It is safe for concurrent use.
type Shared struct {
	mu      sync.Mutex // guards what follows; the work is not done under it
	present *sharing   // nil while nobody does the work
}

// sharing is one run of the work.
type sharing struct {
	done chan struct{} // closed when err is known
	err  error
}

// Do does the work, or waits for the result of a caller that is doing it.
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
