package main

import (
	"slices"

	"github.com/jagregory/locker/v2"
)

// picture is the mesh as its records tell it. It remembers what a service needs after
// its records are gone.
type picture map[string]*service

// service is one service of the picture.
type service struct {
	record         // the last that was seen; a zero one of a service never seen
	seen           bool
	ready, serving locker.State
}

// take takes in the state of a name and returns the service it belongs to.
func (p picture) take(state locker.State) (name string, ok bool) {
	name, serving, ok := parseName(state.Name)
	if !ok {
		return "", false
	}
	s := p.add(name)
	if serving {
		s.serving = state
	} else {
		s.ready = state
	}
	if state.Held {
		s.seen, s.record = true, parseRecord(state.Value)
		for _, need := range s.Needs {
			p.add(need)
		}
	}
	return name, true
}

func (p picture) add(name string) *service {
	if p[name] == nil {
		p[name] = &service{}
	}
	return p[name]
}

// serves reports whether a service holds its record. One that is not ready any more is
// about to give it up.
func (p picture) serves(name string) bool {
	s := p[name]
	return s != nil && s.serving.Held && s.ready.Held
}

// causes returns the services because of which a service cannot serve, by name: those
// that are not ready themselves, among the service, what it needs if it cascades, what
// those need, and so on. Only readiness counts here, which depends on nothing else. So a
// circle of services that need each other has no cause within itself to stay down.
func (p picture) causes(name string) []string {
	var causes []string
	visited := make(map[string]bool)
	var visit func(string)
	visit = func(name string) {
		s := p[name]
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

// missing returns what a service needs and does not find serving, in the order in which
// it needs it.
func (p picture) missing(name string) []string {
	s := p[name]
	if s == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(s.Needs), p.serves)
}

// ahead returns what has to serve before a service does: what is missing, but for what
// waits for that service in turn, for of a circle somebody has to be the first.
func (p picture) ahead(name string) []string {
	return slices.DeleteFunc(p.missing(name), func(need string) bool { return p.waitsFor(need, name) })
}

// waitsFor reports whether a service waits for another, or for one that does.
func (p picture) waitsFor(name, other string) bool {
	visited := make(map[string]bool)
	var visit func(string) bool
	visit = func(name string) bool {
		if name == other {
			return true
		}
		s := p[name]
		if visited[name] || s == nil || !s.Cascade {
			return false
		}
		visited[name] = true
		return slices.ContainsFunc(s.Needs, visit)
	}
	return visit(name)
}

// condition is what the dashboard says of a service.
type condition string

const (
	up        condition = "up"
	degraded  condition = "degraded" // serves, but something it needs does not
	down      condition = "down"
	neverSeen condition = "never seen" // others need it
)

// judge returns the condition of a service and the services because of which it is not
// up, itself if it is down by itself. A service that is down because of nobody is about
// to come back.
func (p picture) judge(name string) (condition, []string) {
	s := p[name]
	switch {
	case s == nil || !s.seen:
		return neverSeen, nil
	case !p.serves(name):
		return down, p.causes(name)
	case s.Cascade: // if something is down, it is about to give up
		return up, nil
	}
	missing := p.missing(name)
	if len(missing) == 0 {
		return up, nil
	}
	var causes []string
	for _, need := range missing {
		if of := p.causes(need); len(of) > 0 {
			causes = append(causes, of...)
		} else {
			causes = append(causes, need)
		}
	}
	slices.Sort(causes)
	return degraded, slices.Compact(causes)
}

// rank is 0 for a service that is the cause of its own condition, else 1.
func (p picture) rank(name string) int {
	if _, because := p.judge(name); slices.Contains(because, name) {
		return 0
	}
	return 1
}
