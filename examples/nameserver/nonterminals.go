package main

import (
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/jagregory/locker/v2"
)

// nonTerminals are the names in a zone that have no lock, but one below them: they exist, and the
// answer is "no data". To say that there is no such name would hide what is below (RFC 8020).
type nonTerminals struct {
	zone    string
	records *locker.Cache

	mu       sync.Mutex // guards what follows
	names    map[string]bool
	changed  <-chan struct{} // closed when names are out of date
	gathered time.Time
	took     time.Duration
}

func newNonTerminals(zone string, records *locker.Cache) *nonTerminals {
	n := &nonTerminals{zone: zone, records: records}
	n.gather()
	return n
}

// include reports whether name is one of them. What it knows may be a little older than the cache: in a
// large zone that changes all the time, it spends a tenth of the time on gathering, at most.
func (n *nonTerminals) include(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.changed:
		if time.Since(n.gathered) >= 10*n.took {
			n.gather()
		}
	default:
	}
	return n.names[name]
}

func (n *nonTerminals) gather() {
	began := time.Now()
	n.changed = n.records.Changed() // before the list, which may be newer
	n.names = make(map[string]bool)
	apex := lockName(n.zone)
	for _, holder := range n.records.List() {
		if !dns.IsSubDomain(n.zone, dns.Fqdn(holder.Name)) || lockName(holder.Name) != holder.Name {
			continue
		}
		for name := holder.Name; name != apex; {
			if _, name, _ = strings.Cut(name, "."); n.names[name] {
				break // and so are those above it
			}
			n.names[name] = true
		}
	}
	n.gathered = time.Now()
	n.took = n.gathered.Sub(began)
}
