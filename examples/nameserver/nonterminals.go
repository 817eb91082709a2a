package main

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/jagregory/locker/v2"
)

// nonTerminals is the set of names in a zone that have no lock themselves but have a
// locked name below them. They exist, so the answer is "no data": an answer that there is
// no such name would hide the names below (RFC 8020).
type nonTerminals struct {
	zone    string
	records *locker.Cache

	mu          sync.Mutex // guards the fields below
	names       map[string]bool
	changed     <-chan struct{} // closed when names is out of date
	rebuiltAt   time.Time
	rebuildTime time.Duration
}

func newNonTerminals(zone string, records *locker.Cache) *nonTerminals {
	n := &nonTerminals{zone: zone, records: records}
	n.rebuild()
	return n
}

// contains reports whether name is in the set. The set may be slightly older than the
// cache: in a large zone that changes constantly, rebuilding it takes at most a tenth of
// the time.
func (n *nonTerminals) contains(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.changed:
		if time.Since(n.rebuiltAt) >= 10*n.rebuildTime {
			n.rebuild()
		}
	default:
	}
	return n.names[name]
}

func (n *nonTerminals) rebuild() {
	began := time.Now()
	n.changed = n.records.Changed() // before List, which may return newer data
	n.names = make(map[string]bool)
	apex := lockName(n.zone)
	for _, holder := range n.records.List() {
		if !dns.IsSubDomain(n.zone, dns.Fqdn(holder.Name)) || lockName(holder.Name) != holder.Name {
			continue
		}
		for name := holder.Name; name != apex; {
			if _, name, _ = strings.Cut(name, "."); n.names[name] {
				break // so are all names above it
			}
			n.names[name] = true
		}
	}
	n.rebuiltAt = time.Now()
	n.rebuildTime = n.rebuiltAt.Sub(began)
}
