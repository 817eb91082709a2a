package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// report is what a node says of itself.
type report struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
	Serving bool   `json:"serving"`
	Because string `json:"because,omitempty"` // why it does not serve
}

func (n *node) report() report {
	problem, obstacle := n.health.gate.why(), n.way.why()
	r := report{Name: n.name, Healthy: problem == nil, Serving: n.serving.Load()}
	switch {
	case r.Serving:
	case problem != nil:
		r.Because = problem.Error()
	case obstacle != nil:
		r.Because = obstacle.Error()
	default:
		r.Because = "it waits for its record"
	}
	return r
}

// control is the HTTP port of a node. Browsers are kept from switching it for the pages
// of others.
func (n *node) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		r := n.report()
		status := http.StatusOK
		if !r.Serving {
			status = http.StatusServiceUnavailable
		}
		writeJSON(w, status, r)
	})
	turn := func(on bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			n.health.turn(on)
			w.WriteHeader(http.StatusNoContent)
		}
	}
	mux.HandleFunc("POST /healthy", turn(true))
	mux.HandleFunc("POST /unhealthy", turn(false))
	return http.NewCrossOriginProtection().Handler(mux)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		http.Error(w, "the answer cannot be written as JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// Whoever has hung up does not hear the rest.
	_, _ = w.Write(append(text, '\n'))
}

// listen opens a port, or says in plain words why it cannot.
func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen at %s (-listen takes another address): %w", address, err)
	}
	return l, nil
}

// reachable is the address of a port, with the name of a host if it listens at all of its
// addresses.
func reachable(address net.Addr, host string) string {
	if tcp, ok := address.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
	}
	return address.String()
}

// serveHTTP serves until ctx ends, and returns when every request is through: streams
// end with ctx, the others within a second or are cut off.
func serveHTTP(ctx context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	tasks, serving := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("cannot serve at %s: %w", l.Addr(), err)
		}
		return nil
	})
	tasks.Go(func() error {
		<-serving.Done()
		bounded, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(bounded) != nil {
			return server.Close()
		}
		return nil
	})
	return tasks.Wait()
}
