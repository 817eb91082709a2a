package main

import (
	"fmt"
	"log"
	"net/http"
	"sync"
	"time"
)

// A backend bears limit calls at one time, and counts them. Its first calls are answered
// when as many as the limit are in flight. The next one hangs until it is canceled; after
// that, calls are again answered only when so many are in flight.
type backend struct {
	log     *log.Logger
	hanging chan *hangingCall // unbuffered

	mu             sync.Mutex // guards what follows
	calls          int
	inFlight, most int
	full           chan struct{} // closed when the limit is reached
	hung           *hangingCall  // nil until there is one, and when its worker has called again
}

type hangingCall struct {
	worker   string
	canceled chan struct{} // closed when it has been canceled
	full     chan struct{} // closed when as many as the limit are in flight after that
	repeated chan struct{} // closed when its worker calls again
}

func newBackend(log *log.Logger) *backend {
	return &backend{log: log, hanging: make(chan *hangingCall), full: make(chan struct{})}
}

func (b *backend) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	hung, full := b.begin(r.URL.Path[1:])
	defer b.end(hung) // nothing is sent before that
	done := r.Context().Done()
	if hung != nil {
		select {
		case b.hanging <- hung:
			<-done
		case <-done:
		}
		return
	}
	select {
	case <-full:
	case <-done:
	}
	select {
	case <-time.After(50 * time.Millisecond): // the work
	case <-done:
	}
}

// begin counts a call, and returns whether it is the one that hangs.
func (b *backend) begin(worker string) (hung *hangingCall, full chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	b.inFlight++
	if b.inFlight > b.most {
		b.most = b.inFlight
		b.log.Printf("%s  calls, now %d in flight", worker, b.inFlight)
	}
	if b.inFlight == limit {
		closeOnce(b.full)
	}
	switch {
	case b.calls == limit+1:
		b.hung = &hangingCall{worker, make(chan struct{}), make(chan struct{}), make(chan struct{})}
		b.log.Printf("%s  calls, and gets no answer", worker)
		return b.hung, b.full
	case b.hung != nil && b.hung.worker == worker:
		close(b.hung.repeated)
		b.hung = nil
	}
	return nil, b.full
}

func (b *backend) end(hung *hangingCall) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inFlight--
	if hung != nil {
		b.full = hung.full
		b.log.Printf("%s  has canceled its call, %d in flight", hung.worker, b.inFlight)
		close(hung.canceled)
	}
}

func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// check returns an error if more calls were in flight at one time than the limit.
func (b *backend) check() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log.Printf("%d calls, at most %d in flight at one time", b.calls, b.most)
	if b.most > limit {
		return fmt.Errorf("%d calls were in flight at one time, want at most %d", b.most, limit)
	}
	return nil
}
