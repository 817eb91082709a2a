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
	heads   map[string][]*entry  // by name, those that came to hold it, in that order
	states  map[string][]state   // by name, who held it
	set     map[string][]element // puts into the guarded set, by call
}

// entry is an entry in a queue. Revisions are 0 for what has not happened.
type entry struct {
	Name, Key, Owner       string
	Mode                   mode
	Lease                  int64
	Created, Head, Deleted int64 // Head: when it came to hold the name, at the head of the queue
	Revoked                bool  // deleted because its lease expired or was revoked
}

// passedOn reports whether several calls of one process use the entry and pass the hold on.
// Its value then names the process instead of a call.
func (e *entry) passedOn() bool { return e.Lease != 0 && !strings.Contains(e.Owner, "#") }

// of reports whether the entry may belong to the call.
func (e *entry) of(c call) bool {
	return e.Owner == c.ref() || e.passedOn() && e.Owner == c.Process
}

// over is the first revision without the entry.
func (e *entry) over() int64 {
	if e.Deleted == 0 {
		return math.MaxInt64
	}
	return e.Deleted
}

// state is who held a name from a revision on, the oldest first.
type state struct {
	from    int64
	holders []*entry
}

// element is a put into the guarded set, and the token under which it was made.
type element struct {
	Name            string
	Token, Revision int64
}

// newTruth replays the changes. One revision may delete entries and create others.
func newTruth(changes []change, ticks []tick) *truth {
	t := &truth{
		changes: changes, ticks: ticks, entries: make(map[string][]*entry),
		heads: make(map[string][]*entry), states: make(map[string][]state), set: make(map[string][]element),
	}
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
			t.advance(name, queues[name], c.Revision)
		}
	}
	return t
}

// advance notes who holds a name from a revision on, which has changed its queue.
func (t *truth) advance(name string, queue []*entry, revision int64) {
	holders := slices.Clone(queue[:holding(queue)])
	for _, e := range holders {
		if e.Head == 0 {
			e.Head = revision
			t.heads[name] = append(t.heads[name], e)
		}
	}
	if !slices.Equal(holders, t.holdersAt(name, revision)) {
		t.states[name] = append(t.states[name], state{revision, holders})
	}
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
		e := &entry{Name: name, Key: ev.Key, Owner: ref, Mode: modeOf(ev.Key), Lease: ev.Lease, Created: ev.Created}
		t.entries[name] = append(t.entries[name], e)
		queue = append(queue, e)
		slices.SortStableFunc(queue, func(a, b *entry) int { return cmp.Compare(a.Created, b.Created) })
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

// queueOf returns what the keys of all entries in the queue of a name begin with.
func queueOf(name string) string { return lockPrefix + url.PathEscape(name) + "/" }

func elementOf(key string) (name, ref string, isElement bool) {
	rest, isElement := strings.CutPrefix(key, setPrefix)
	escaped, ref, both := strings.Cut(rest, "/")
	name, err := url.PathUnescape(escaped)
	return name, ref, isElement && both && err == nil
}

func elementKey(name, ref string) string { return setPrefix + url.PathEscape(name) + "/" + ref }

// entry returns the entry of a name with a create revision, or nil.
func (t *truth) entry(name string, created int64) *entry {
	if all := t.created(name, created); len(all) > 0 {
		return all[0]
	}
	return nil
}

// created returns the entries of a name with a create revision. Only shared ones may be as
// old as each other.
func (t *truth) created(name string, revision int64) []*entry {
	all := t.entries[name]
	byAge := func(e *entry, revision int64) int { return cmp.Compare(e.Created, revision) }
	from, _ := slices.BinarySearchFunc(all, revision, byAge)
	to, _ := slices.BinarySearchFunc(all, revision+1, byAge)
	return all[from:to]
}

// entryOf returns the entry of a hold, or, if it has none, one that another has put at the
// same revision, or nil.
func (t *truth) entryOf(c call) *entry {
	all := t.created(c.Name, c.Token)
	if i := slices.IndexFunc(all, func(e *entry) bool { return e.of(c) }); i >= 0 {
		return all[i]
	}
	return t.entry(c.Name, c.Token)
}

// holdersAt returns who held a name at a revision, the oldest first.
func (t *truth) holdersAt(name string, revision int64) []*entry {
	states := t.states[name]
	i, _ := slices.BinarySearchFunc(states, revision+1, func(s state, revision int64) int { return cmp.Compare(s.from, revision) })
	if i == 0 {
		return nil
	}
	return states[i-1].holders
}

// headAt returns the oldest holder of a name at a revision, or nil.
func (t *truth) headAt(name string, revision int64) *entry {
	if holders := t.holdersAt(name, revision); len(holders) > 0 {
		return holders[0]
	}
	return nil
}

// together returns how many held a mixed name at one time, at most.
func (t *truth) together() (most int) {
	for name, states := range t.states {
		for _, s := range states {
			if isMixed(name) {
				most = max(most, len(s.holders))
			}
		}
	}
	return most
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
