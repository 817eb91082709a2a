package main

import (
	"cmp"
	"encoding/json"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Prefixes of the keys in etcd. All keys are below rootPrefix.
const (
	rootPrefix = "chaos/"
	lockPrefix = "chaos/locks/"
	setPrefix  = "chaos/set/"
	fillPrefix = "chaos/fill/"
)

// change is what one revision changed, and when the watch reported it.
type change struct {
	Revision int64   `json:"rev"`
	At       instant `json:"at"`
	Events   []event `json:"ev"`
}

type event struct {
	Key     string `json:"k"`
	Deleted bool   `json:"d,omitempty"`
	Created int64  `json:"c,omitempty"` // create revision
	Lease   int64  `json:"l,omitempty"`
	Value   string `json:"v,omitempty"`
}

// tick is a read of the cluster's revision, sent at Sent and answered by Got.
type tick struct {
	Sent, Got instant
	Revision  int64
}

// truth is the ground truth: what happened in etcd, as its watch reported it.
type truth struct {
	changes []change // by revision
	ticks   []tick   // by time

	entries map[string][]*entry  // by name, in order of creation
	heads   map[string][]*entry  // by name, those that became the head, in that order
	set     map[string][]element // puts into the guarded set, by call
}

// entry is an entry in a queue. Revisions are 0 for what has not happened.
type entry struct {
	Name, Key, Owner       string
	Lease                  int64
	Created, Head, Deleted int64
	Revoked                bool // deleted because its lease expired or was revoked
}

// shared reports whether several calls of one process share the entry and pass the hold on.
// Its value then names the process instead of a call.
func (e *entry) shared() bool { return e.Lease != 0 && !strings.Contains(e.Owner, "#") }

// of reports whether the entry may belong to the call.
func (e *entry) of(c call) bool { return e.Owner == c.ref() || e.shared() && e.Owner == c.Process }

// over is the first revision without the entry.
func (e *entry) over() int64 {
	if e.Deleted == 0 {
		return math.MaxInt64
	}
	return e.Deleted
}

// element is a put into the guarded set, and the token under which it was made.
type element struct {
	Name            string
	Token, Revision int64
}

// newTruth replays the changes. One revision may delete entries and create others.
func newTruth(changes []change, ticks []tick) *truth {
	t := &truth{changes: changes, ticks: ticks, entries: make(map[string][]*entry), heads: make(map[string][]*entry), set: make(map[string][]element)}
	queues := make(map[string][]*entry) // current entries, by name
	leases := newLeaseTracker(changes)
	for _, c := range changes {
		revoked := leases.revokedBy(c)
		touched := make(map[string]bool)
		for _, ev := range c.Events {
			if name, ref, isElement := elementOf(ev.Key); isElement && !ev.Deleted {
				token, _ := strconv.ParseInt(ev.Value, 10, 64) // 0 is no valid token
				t.set[ref] = append(t.set[ref], element{name, token, c.Revision})
			} else if name, isEntry := nameOf(ev.Key); isEntry {
				touched[name] = true
				queues[name] = t.take(queues[name], name, c.Revision, ev, revoked)
			}
		}
		for name := range touched {
			if queue := queues[name]; len(queue) > 0 && queue[0].Head == 0 {
				queue[0].Head = c.Revision
				t.heads[name] = append(t.heads[name], queue[0])
			}
		}
	}
	return t
}

// leaseTracker tracks the leases of sessions and their keys: entries and records.
type leaseTracker struct {
	of   map[string]int64          // lease by key
	keys map[int64]map[string]bool // by lease
	last map[int64]int64           // revision of the last put, by lease
}

func newLeaseTracker(changes []change) *leaseTracker {
	l := &leaseTracker{of: make(map[string]int64), keys: make(map[int64]map[string]bool), last: make(map[int64]int64)}
	for _, c := range changes {
		for _, ev := range c.Events {
			if !ev.Deleted && strings.HasPrefix(ev.Key, lockPrefix) {
				l.last[ev.Lease] = c.Revision
			}
		}
	}
	return l
}

// revokedBy applies a change and returns the leases that it revoked: those whose records it
// deleted, or, while a session has deleted its record to resolve a put in doubt, those that
// lost all their keys and got none later. etcd revokes each lease in its own revision.
func (l *leaseTracker) revokedBy(c change) map[int64]bool {
	revoked, emptied, onlyDeletes := make(map[int64]bool), make(map[int64]bool), true
	for _, ev := range c.Events {
		switch {
		case !strings.HasPrefix(ev.Key, lockPrefix):
			onlyDeletes = false
		case !ev.Deleted:
			onlyDeletes = false
			l.of[ev.Key] = ev.Lease
			if l.keys[ev.Lease] == nil {
				l.keys[ev.Lease] = make(map[string]bool)
			}
			l.keys[ev.Lease][ev.Key] = true
		default:
			lease := l.of[ev.Key]
			delete(l.keys[lease], ev.Key)
			emptied[lease] = len(l.keys[lease]) == 0
			revoked[lease] = revoked[lease] || strings.HasPrefix(ev.Key, lockPrefix+"/")
		}
	}
	for lease, empty := range emptied {
		if onlyDeletes && len(emptied) == 1 && empty && lease != 0 && l.last[lease] < c.Revision {
			revoked[lease] = true
		}
	}
	return revoked
}

// take applies an event of a revision that also revoked leases to a queue, oldest entry first.
func (t *truth) take(queue []*entry, name string, revision int64, ev event, revoked map[int64]bool) []*entry {
	i := slices.IndexFunc(queue, func(e *entry) bool { return e.Key == ev.Key })
	switch {
	case ev.Deleted && i >= 0:
		queue[i].Deleted, queue[i].Revoked = revision, revoked[queue[i].Lease]
		return slices.Delete(queue, i, i+1)
	case !ev.Deleted && i >= 0 && queue[i].Created == ev.Created:
		return queue // only its value has changed
	case !ev.Deleted:
		ref, _, _ := strings.Cut(ev.Value, "+")
		e := &entry{Name: name, Key: ev.Key, Owner: ref, Lease: ev.Lease, Created: ev.Created}
		t.entries[name] = append(t.entries[name], e)
		queue = append(queue, e)
		slices.SortFunc(queue, func(a, b *entry) int { return cmp.Compare(a.Created, b.Created) })
	}
	return queue
}

// nameOf returns the name of the queue that an entry belongs to. Records of sessions, whose
// name is empty, are no entries.
func nameOf(key string) (string, bool) {
	rest, isLock := strings.CutPrefix(key, lockPrefix)
	escaped, member, both := strings.Cut(rest, "/")
	if !isLock || !both || escaped == "" || member == "" {
		return "", false
	}
	name, err := url.PathUnescape(escaped)
	return name, err == nil
}

func elementOf(key string) (name, ref string, isElement bool) {
	rest, isElement := strings.CutPrefix(key, setPrefix)
	escaped, ref, both := strings.Cut(rest, "/")
	name, err := url.PathUnescape(escaped)
	return name, ref, isElement && both && err == nil
}

func elementKey(name, ref string) string { return setPrefix + url.PathEscape(name) + "/" + ref }

// entry returns the entry of a name with a create revision, or nil.
func (t *truth) entry(name string, created int64) *entry {
	all := t.entries[name]
	i, found := slices.BinarySearchFunc(all, created, func(e *entry, created int64) int { return cmp.Compare(e.Created, created) })
	if !found {
		return nil
	}
	return all[i]
}

// headAt returns the head of a queue at a revision, or nil.
func (t *truth) headAt(name string, revision int64) *entry {
	heads := t.heads[name]
	i, _ := slices.BinarySearchFunc(heads, revision+1, func(e *entry, revision int64) int { return cmp.Compare(e.Head, revision) })
	if i == 0 || heads[i-1].over() <= revision {
		return nil
	}
	return heads[i-1]
}

// by returns a time at which the revision certainly existed: whatever happened after that
// time happened after the revision.
func (t *truth) by(revision int64) instant {
	at := instant(math.MaxInt64)
	i, _ := slices.BinarySearchFunc(t.changes, revision, func(c change, revision int64) int { return cmp.Compare(c.Revision, revision) })
	if i < len(t.changes) {
		at = t.changes[i].At
	}
	j, _ := slices.BinarySearchFunc(t.ticks, revision, func(k tick, revision int64) int { return cmp.Compare(k.Revision, revision) })
	if j < len(t.ticks) {
		at = min(at, t.ticks[j].Got)
	}
	return at
}

// notBefore returns a time at which the revision certainly did not exist yet.
func (t *truth) notBefore(revision int64) instant {
	j, _ := slices.BinarySearchFunc(t.ticks, revision, func(k tick, revision int64) int { return cmp.Compare(k.Revision, revision) })
	if j == 0 {
		return 0
	}
	return t.ticks[j-1].Sent
}

// readChanges reads what the witness wrote.
func readChanges(path string) (changes []change, err error) {
	err = eachLine(path, func(line []byte) error {
		var c change
		if err := json.Unmarshal(line, &c); err != nil {
			return err
		}
		changes = append(changes, c)
		return nil
	})
	return changes, err
}
