package livepage

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// PulseInterval is the interval between two pulses of a stream.
	PulseInterval = 2 * time.Second
	// StaleAfter is the time after which a page is stale: it has received nothing for so long,
	// or the source of what it shows has not answered.
	StaleAfter = 6 * time.Second
	// UpdateInterval is the least time between two updates of a stream. What changes more than
	// once in between is sent as it is at the end.
	UpdateInterval = 100 * time.Millisecond
	// MaxStreams is how many clients may read a stream at a time. Others are refused.
	MaxStreams = 256
)

// Stream serves a stream of server-sent events: "update" with what Update returns, and "pulse"
// with the Age in ms. A client that reconnects names the version that it has seen, in the
// header Last-Event-ID or the parameter after, and receives what it lacks.
type Stream struct {
	// Update returns what a client lacks that has last seen the given version, which may be of
	// another stream.
	Update func(r *http.Request, seen string) (Update, error)
	// Age returns the time since the source of what is shown has last answered.
	Age func() time.Duration

	open atomic.Int64
}

// Update is the newest state.
type Update struct {
	Version string
	Data    any             // for the client, in JSON; nil if it lacks nothing
	Changed <-chan struct{} // closed when there is a newer version; nil if each pulse asks
}

func (s *Stream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer s.open.Add(-1)
	if s.open.Add(1) > MaxStreams {
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	seen := r.URL.Query().Get("after")
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		seen = id
	}
	w.Header().Set("Content-Type", "text/event-stream")
	pulse := time.NewTicker(PulseInterval)
	defer pulse.Stop()
	for {
		u, err := s.Update(r, seen)
		if err != nil {
			return
		}
		if u.Data != nil {
			if send(w, "update", u.Version, u.Data) != nil {
				return
			}
			seen = u.Version
		}
		if send(w, "pulse", u.Version, s.Age().Milliseconds()) != nil || !next(r, u.Changed, pulse.C) {
			return
		}
	}
}

// next waits until it is time to look again, and returns false if the client has gone.
func next(r *http.Request, changed <-chan struct{}, pulse <-chan time.Time) bool {
	least := time.NewTimer(UpdateInterval)
	defer least.Stop()
	select {
	case <-least.C:
	case <-r.Context().Done():
		return false
	}
	select {
	case <-changed:
	case <-pulse:
	case <-r.Context().Done():
		return false
	}
	return true
}

// send sends an event. A client that does not read for too long is given up.
func send(w http.ResponseWriter, event, id string, data any) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	stream := http.NewResponseController(w)
	if err := stream.SetWriteDeadline(time.Now().Add(StaleAfter)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "event: %s\nid: %s\ndata: %s\n\n", event, id, text); err != nil {
		return err
	}
	return stream.Flush()
}
