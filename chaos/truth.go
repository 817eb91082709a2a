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

// Where a round keeps its things in etcd.
const (
	everything = "chaos/"
	lockPrefix = "chaos/locks/"
	setPrefix  = "chaos/set/"
	fillPrefix = "chaos/fill/"
)

// change is what one revision changed, and when the harness was told.
type change struct {
	Revision int64   `json:"rev"`
	At       instant `json:"at"`
	Events   []event `json:"ev"`
}

type event struct {
	Key     string `json:"k"`
	Deleted bool   `json:"d,omitempty"`
	Created int64  `json:"c,omitempty"` // revision
	Lease   int64  `json:"l,omitempty"`
	Value   string `json:"v,omitempty"`
}

// tick says: the cluster was asked for its revision at Sent and had answered at Got.
type tick struct {
	Sent, Got instant
	Revision  int64
}

// truth is what was so in etcd, by its own account.
type truth struct {
	changes []change // by revision
	ticks   []tick   // by time

	entries map[string][]*entry  // by name, in the order of their creation
	heads   map[string][]*entry  // by name, those that became the head, in that order
	set     map[string][]element // what was put into the guarded set, by who put it
}

// entry is the life of one entry in a queue. Revisions are 0 for what has not happened.
type entry struct {
	Name, Key, Who         string
	Lease                  int64
	Created, Head, Deleted int64
	Revoked                bool // it went with its lease
}

// shared reports whether the entry is of several calls of one process, which pass the hold on among
// themselves: its value names the process then, not a call.
func (e *entry) shared() bool { return e.Lease != 0 && !strings.Contains(e.Who, "#") }

// of reports whether the entry is of that call, or may be.
func (e *entry) of(c call) bool { return e.Who == c.who() || e.shared() && e.Who == c.Process }

// over is the revision from which on the entry is not there.
func (e *entry) over() int64 {
	if e.Deleted == 0 {
		return math.MaxInt64
	}
	return e.Deleted
}

// element is that an element of the guarded set was put: under which token, and when.
type element struct {
	Name            string
	Token, Revision int64
}

// newTruth works out the lives of the entries. Within one revision entries may go and others come.
func newTruth(changes []change, ticks []tick) *truth {
	t := &truth{changes: changes, ticks: ticks, entries: make(map[string][]*entry), heads: make(map[string][]*entry), set: make(map[string][]element)}
	queues := make(map[string][]*entry) // by name, those that are there
	leases := newLeases(changes)
	for _, c := range changes {
		over := leases.goneWith(c)
		touched := make(map[string]bool)
		for _, ev := range c.Events {
			if name, who, isElement := elementOf(ev.Key); isElement && !ev.Deleted {
				token, _ := strconv.ParseInt(ev.Value, 10, 64) // 0 is nobody's token
				t.set[who] = append(t.set[who], element{name, token, c.Revision})
			} else if name, isEntry := nameOf(ev.Key); isEntry {
				touched[name] = true
				queues[name] = t.take(queues[name], name, c.Revision, ev, over)
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

// leases are those of sessions, with the keys that are there of them: entries and records.
type leases struct {
	of   map[string]int64          // by key
	keys map[int64]map[string]bool // by lease
	last map[int64]int64           // revision of the last put, by lease
}

func newLeases(changes []change) *leases {
	l := &leases{of: make(map[string]int64), keys: make(map[int64]map[string]bool), last: make(map[int64]int64)}
	for _, c := range changes {
		for _, ev := range c.Events {
			if !ev.Deleted && strings.HasPrefix(ev.Key, lockPrefix) {
				l.last[ev.Lease] = c.Revision
			}
		}
	}
	return l
}

// goneWith takes a change in, and returns the leases that went with it: those whose records did, or, if the
// record was not there (for a moment, to settle what became of a put), those that lost all they had at that
// revision and were not heard of again. etcd revokes a lease in a revision of its own.
func (l *leases) goneWith(c change) map[int64]bool {
	over, emptied, onlyDeletes := make(map[int64]bool), make(map[int64]bool), true
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
			over[lease] = over[lease] || strings.HasPrefix(ev.Key, lockPrefix+"/")
		}
	}
	for lease, empty := range emptied {
		if onlyDeletes && len(emptied) == 1 && empty && lease != 0 && l.last[lease] < c.Revision {
			over[lease] = true
		}
	}
	return over
}

// take applies one event to a queue, whose oldest entry stays the first; over are the leases that went at
// the same revision.
func (t *truth) take(queue []*entry, name string, revision int64, ev event, over map[int64]bool) []*entry {
	i := slices.IndexFunc(queue, func(e *entry) bool { return e.Key == ev.Key })
	switch {
	case ev.Deleted && i >= 0:
		queue[i].Deleted, queue[i].Revoked = revision, over[queue[i].Lease]
		return slices.Delete(queue, i, i+1)
	case !ev.Deleted && i >= 0 && queue[i].Created == ev.Created:
		return queue // its value has changed
	case !ev.Deleted:
		who, _, _ := strings.Cut(ev.Value, "+")
		e := &entry{Name: name, Key: ev.Key, Who: who, Lease: ev.Lease, Created: ev.Created}
		t.entries[name] = append(t.entries[name], e)
		queue = append(queue, e)
		slices.SortFunc(queue, func(a, b *entry) int { return cmp.Compare(a.Created, b.Created) })
	}
	return queue
}

// nameOf returns the name whose queue has the entry. Records of sessions stand in that of the empty
// name and are no entries.
func nameOf(key string) (string, bool) {
	rest, isLock := strings.CutPrefix(key, lockPrefix)
	escaped, member, both := strings.Cut(rest, "/")
	if !isLock || !both || escaped == "" || member == "" {
		return "", false
	}
	name, err := url.PathUnescape(escaped)
	return name, err == nil
}

func elementOf(key string) (name, who string, isElement bool) {
	rest, isElement := strings.CutPrefix(key, setPrefix)
	escaped, who, both := strings.Cut(rest, "/")
	name, err := url.PathUnescape(escaped)
	return name, who, isElement && both && err == nil
}

func elementKey(name, who string) string { return setPrefix + url.PathEscape(name) + "/" + who }

// entry returns the entry of a name with that create revision, nil if there was none.
func (t *truth) entry(name string, created int64) *entry {
	all := t.entries[name]
	i, found := slices.BinarySearchFunc(all, created, func(e *entry, created int64) int { return cmp.Compare(e.Created, created) })
	if !found {
		return nil
	}
	return all[i]
}

// headAt returns who was the head of a queue at a revision, nil if nobody was.
func (t *truth) headAt(name string, revision int64) *entry {
	heads := t.heads[name]
	i, _ := slices.BinarySearchFunc(heads, revision+1, func(e *entry, revision int64) int { return cmp.Compare(e.Head, revision) })
	if i == 0 || heads[i-1].over() <= revision {
		return nil
	}
	return heads[i-1]
}

// by returns a time at which the revision was there for certain: what happened after it happened
// after the revision.
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

// notBefore returns a time at which the revision was not there yet for certain.
func (t *truth) notBefore(revision int64) instant {
	j, _ := slices.BinarySearchFunc(t.ticks, revision, func(k tick, revision int64) int { return cmp.Compare(k.Revision, revision) })
	if j == 0 {
		return 0
	}
	return t.ticks[j-1].Sent
}

// readChanges reads what the watch has written.
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
