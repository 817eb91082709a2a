package main

import (
	"slices"

	"github.com/jagregory/locker/v2"
)

// mesh is the state of all services, as derived from their records. It retains what a
// service needs after the service's records are gone.
type mesh map[string]*service

// service is the state of one service.
type service struct {
	record         // the last one seen; zero if none has been seen
	seen           bool
	ready, serving locker.State
}

// apply applies the state of a name in etcd, and returns the service to which the name
// belongs.
func (m mesh) apply(state locker.State) (name string, ok bool) {
	name, serving, ok := parseName(state.Name)
	if !ok {
		return "", false
	}
	s := m.add(name)
	if serving {
		s.serving = state
	} else {
		s.ready = state
	}
	if state.Held {
		s.seen, s.record = true, parseRecord(state.Value)
		for _, need := range s.Needs {
			m.add(need)
		}
	}
	return name, true
}

func (m mesh) add(name string) *service {
	if m[name] == nil {
		m[name] = &service{}
	}
	return m[name]
}

// serves reports whether a service is serving. One that holds its record but is no longer
// ready is about to release it.
func (m mesh) serves(name string) bool {
	s := m[name]
	return s != nil && s.serving.Held && s.ready.Held
}

// causes returns the root causes why a service cannot serve, sorted by name: the services
// that are not ready, among the service itself, the services it needs if it cascades,
// those that they need, and so on. Only readiness counts, which does not depend on other
// services. So a cycle of services that need each other contains no cause to stay down.
func (m mesh) causes(name string) []string {
	var causes []string
	visited := make(map[string]bool)
	var visit func(string)
	visit = func(name string) {
		s := m[name]
		switch {
		case visited[name]:
			return
		case s == nil || !s.ready.Held:
			causes = append(causes, name)
		case s.Cascade:
			visited[name] = true
			for _, need := range s.Needs {
				visit(need)
			}
		}
		visited[name] = true
	}
	visit(name)
	slices.Sort(causes)
	return causes
}

// missing returns the services that a service needs and that are not serving, in the
// order in which it needs them.
func (m mesh) missing(name string) []string {
	s := m[name]
	if s == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.Needs), m.serves)
}

// prerequisites returns the services that must serve before a service does: the missing
// ones, except those that in turn wait for the service, because in a cycle one must be
// the first.
func (m mesh) prerequisites(name string) []string {
	return slices.DeleteFunc(m.missing(name), func(need string) bool { return m.waitsFor(need, name) })
}

// waitsFor reports whether a service waits for another one, directly or indirectly.
func (m mesh) waitsFor(name, other string) bool {
	visited := make(map[string]bool)
	var visit func(string) bool
	visit = func(name string) bool {
		if name == other {
			return true
		}
		s := m[name]
		if visited[name] || s == nil || !s.Cascade {
			return false
		}
		visited[name] = true
		return slices.ContainsFunc(s.Needs, visit)
	}
	return visit(name)
}

// condition is the condition of a service, as the dashboard shows it.
type condition string

const (
	up        condition = "up"
	degraded  condition = "degraded" // serving, but something it needs is not
	down      condition = "down"
	neverSeen condition = "never seen" // others need it
)

// conditionOf returns the condition of a service and the services that are the causes if
// it is not up: the service itself if it is not ready. A service that is down without a
// cause is about to serve.
func (m mesh) conditionOf(name string) (condition, []string) {
	s := m[name]
	switch {
	case s == nil || !s.seen:
		return neverSeen, nil
	case !m.serves(name):
		return down, m.causes(name)
	case s.Cascade: // if something it needs is down, it is about to stop
		return up, nil
	}
	missing := m.missing(name)
	if len(missing) == 0 {
		return up, nil
	}
	var causes []string
	for _, need := range missing {
		if of := m.causes(need); len(of) > 0 {
			causes = append(causes, of...)
		} else {
			causes = append(causes, need)
		}
	}
	slices.Sort(causes)
	return degraded, slices.Compact(causes)
}

// rank returns 0 for a service that is a cause of its own condition, and 1 otherwise.
func (m mesh) rank(name string) int {
	if _, because := m.conditionOf(name); slices.Contains(because, name) {
		return 0
	}
	return 1
}
