package ui

import (
	"net/http"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
	"github.com/jagregory/locker/v2/internal/livepage"
)

// state is what the page shows, in JSON. It is an interface: fields are added, and none is
// renamed or removed. Fields that "locker ls -o json" has are called as there.
type state struct {
	Time    time.Time     `json:"time"` // as of which
	Age     float64       `json:"age_seconds"`
	Stale   bool          `json:"stale"`
	Total   int           `json:"total"` // of names with the prefix, on all pages
	Names   []nameState   `json:"names"`
	Changes []changeState `json:"changes,omitempty"` // of ?name=, the newest first
}

// nameState is a name that is held.
type nameState struct {
	Name    string       `json:"name"`
	Holders []entryState `json:"holders"`
	Waiters int          `json:"waiters"`
	Queue   []entryState `json:"queue,omitempty"` // of ?name=: holders and waiters, the oldest first
}

// entryState is an entry in a queue.
type entryState struct {
	show.Entry
	Since time.Time `json:"since"`       // when it began to hold or to wait
	Exact bool      `json:"since_exact"` // otherwise it began before that
	Marks []string  `json:"marks,omitempty"`
}

// changeState is a change of who holds a name.
type changeState struct {
	Time  time.Time `json:"time"`
	What  string    `json:"what"` // "holds", "value", "gone" or "released here"
	Token int64     `json:"token"`
	Value string    `json:"value"` // the beginning of it
}

// serveState serves what the page shows: all pages, unless the query names one. It asks about
// the leases of so many entries only; of the others it says what it knows.
func (s *Server) serveState(w http.ResponseWriter, r *http.Request) {
	picture, q := s.board.picture(), parseQuery(r.URL.Query())
	names, answer := q.from(picture.names), state{Names: []nameState{}}
	switch {
	case q.Name != "":
		of := named(picture.names, q.Name)
		names = []*queue{of}
		for _, c := range s.board.history(q.Name) {
			answer.Changes = append(answer.Changes, changeState{c.Time, c.What, c.Token, c.Value})
		}
	case r.URL.Query().Has("page"):
		answer.Total = len(names)
		names, _, _ = q.page(names)
	}
	answer.Total = max(answer.Total, len(names))
	var seats []seat
	for _, name := range names {
		seats = append(seats, name.Seats[:shownOf(q, name)]...)
	}
	s.refresh(r, seats)
	for _, name := range names {
		if len(name.Seats) > 0 {
			answer.Names = append(answer.Names, s.nameState(q, name))
		}
	}
	age := s.board.age()
	answer.Time, answer.Age, answer.Stale = time.Now().Add(-age), age.Seconds(), age > livepage.StaleAfter
	livepage.WriteJSON(w, http.StatusOK, answer)
}

// shownOf returns how many entries of a queue the answer has: the holders, or all if the query
// names it.
func shownOf(q query, of *queue) int {
	if q.Name != "" {
		return len(of.Seats)
	}
	return of.Held
}

func (s *Server) nameState(q query, of *queue) nameState {
	n := nameState{Name: of.Name, Holders: []entryState{}, Waiters: of.waiting()}
	for i, seat := range of.Seats[:shownOf(q, of)] {
		e := s.entryState(seat)
		if i < of.Held {
			n.Holders = append(n.Holders, e)
		}
		if q.Name != "" {
			n.Queue = append(n.Queue, e)
		}
	}
	return n
}

func (s *Server) entryState(of seat) entryState {
	e := entryState{Entry: show.EntryOf(of.Entry), Since: of.Since.UTC(), Exact: of.Exact}
	if left, granted, ok := s.lifetimes.of(of.Lease); ok && of.Lease != 0 {
		seconds, of := int64(left/time.Second), int64(granted/time.Second)
		e.TTL, e.Granted = &seconds, &of
	}
	for _, m := range marksOf(of.Entry) {
		e.Marks = append(e.Marks, m.Label)
	}
	return e
}

// refresh asks about the leases of entries, unless etcd does not answer anyway.
func (s *Server) refresh(r *http.Request, seats []seat) {
	if s.board.stale() != 0 {
		return
	}
	leases := make([]clientv3.LeaseID, len(seats))
	for i := range seats {
		leases[i] = seats[i].Lease
	}
	s.lifetimes.refresh(r.Context(), leases)
}
