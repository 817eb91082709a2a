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

// report is a node's report on itself.
type report struct {
	Name    string `json:"name"`
	Healthy bool   `json:"healthy"`
	Serving bool   `json:"serving"`
	Because string `json:"because,omitempty"` // why it is not serving
}

func (n *node) report() report {
	problem, obstacle := n.health.gate.err(), n.canServe.err()
	r := report{Name: n.name, Healthy: problem == nil, Serving: n.serving.Load()}
	switch {
	case r.Serving:
	case problem != nil:
		r.Because = problem.Error()
	case obstacle != nil:
		r.Because = obstacle.Error()
	default:
		r.Because = "waiting for its record"
	}
	return r
}

// control returns the handler of a node's HTTP port. Pages of other sites cannot use it
// to change the node's health.
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
	setHealthy := func(healthy bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			n.health.setHealthy(healthy)
			w.WriteHeader(http.StatusNoContent)
		}
	}
	mux.HandleFunc("POST /healthy", setHealthy(true))
	mux.HandleFunc("POST /unhealthy", setHealthy(false))
	return http.NewCrossOriginProtection().Handler(mux)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		http.Error(w, "cannot encode the response as JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// An error means that the client has disconnected.
	_, _ = w.Write(append(text, '\n'))
}

// listen opens a port, or returns an error that explains why it cannot.
func listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s (use -listen for another address): %w", address, err)
	}
	return l, nil
}

// reachable returns the address at which a port can be reached, with the given host name
// if it listens on all addresses.
func reachable(address net.Addr, host string) string {
	if tcp, ok := address.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return net.JoinHostPort(host, strconv.Itoa(tcp.Port))
	}
	return address.String()
}

// serveHTTP serves until ctx ends, and returns when all requests have ended: streams end
// with ctx, other requests within a second or they are cut off.
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
			return fmt.Errorf("cannot serve on %s: %w", l.Addr(), err)
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
