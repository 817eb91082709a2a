package main

import (
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/jagregory/locker/v2/internal/livepage"
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
		livepage.WriteJSON(w, status, r)
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
