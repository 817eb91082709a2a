package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// maxChanges is the number of changes that the dashboard keeps.
const maxChanges = 200

// board is the state of the dashboard: the mesh, and its latest changes.
type board struct {
	epoch string // distinguishes this board's versions from those of another run

	mu       sync.Mutex // guards the fields below
	mesh     mesh
	statuses map[string]serviceStatus
	owners   map[clientv3.LeaseID]locker.Owner
	log      []change // oldest first
	version  int64
	dropped  int64         // version of the last change that was removed from the log
	changed  chan struct{} // closed at the next version
}

// serviceStatus is what the board last showed of a service.
type serviceStatus struct {
	condition condition
	because   []string
	since     time.Time
	token     int64 // of the last hold
	holder    string
}

// change is a line of the log.
type change struct {
	Version   int64     `json:"-"`
	Revision  int64     `json:"revision"`
	Time      time.Time `json:"time"`
	Service   string    `json:"service"`
	Condition condition `json:"condition"`
	Text      string    `json:"text"`
}

func newBoard() *board {
	return &board{
		epoch:    strconv.FormatUint(uint64(rand.Uint32()), 36),
		mesh:     make(mesh),
		statuses: make(map[string]serviceStatus),
		owners:   make(map[clientv3.LeaseID]locker.Owner),
		changed:  make(chan struct{}),
	}
}

// follow keeps the board up to date until ctx ends. It uses the cache alone: a list
// followed by a watch would miss what happens in between.
func (b *board) follow(ctx context.Context, client *locker.Client, cache *locker.Cache) {
	for held := []locker.Holder(nil); ; {
		changed := cache.Changed()
		now := cache.List()
		states := differences(held, now, cache.Revision())
		b.identify(ctx, client, now)
		b.apply(time.Now(), states...)
		held = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// differences returns the states of the names whose holders have changed.
func differences(before, now []locker.Holder, revision int64) []locker.State {
	was, is := make(map[string]locker.Holder), make(map[string]bool)
	for _, holder := range before {
		was[holder.Name] = holder
	}
	var states []locker.State
	for _, holder := range now {
		is[holder.Name] = true
		if was[holder.Name] != holder {
			states = append(states, locker.State{Holder: holder, Held: true, Revision: revision})
		}
	}
	for _, holder := range before {
		if !is[holder.Name] {
			states = append(states, locker.State{Holder: locker.Holder{Name: holder.Name}, Revision: revision})
		}
	}
	return states
}

// identify looks up the processes of the holders, if one of them is unknown. If etcd does
// not answer, the process stays unknown until the next change of a record.
func (b *board) identify(ctx context.Context, client *locker.Client, holders []locker.Holder) {
	b.mu.Lock()
	known := !slices.ContainsFunc(holders, func(holder locker.Holder) bool {
		_, ok := b.owners[holder.Lease]
		return !ok && holder.Lease != 0
	})
	b.mu.Unlock()
	if known {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if owners, err := client.Owners(ctx); err == nil {
		b.mu.Lock()
		b.owners = owners
		b.mu.Unlock()
	}
}

// apply applies states that were current at one revision, and makes a new version.
func (b *board) apply(now time.Time, states ...locker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var revision int64
	for _, state := range states {
		b.mesh.apply(state)
		revision = max(revision, state.Revision, state.Token)
	}
	b.version++
	names := b.names()
	slices.SortStableFunc(names, func(one, other string) int { // causes before their consequences
		return cmp.Compare(b.mesh.rank(one), b.mesh.rank(other))
	})
	for _, name := range names {
		b.logChange(name, revision, now)
	}
	if n := len(b.log) - maxChanges; n > 0 {
		b.dropped = b.log[n-1].Version
		b.log = slices.Delete(b.log, 0, n)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// logChange adds a line to the log if the status of a service has changed.
func (b *board) logChange(name string, revision int64, now time.Time) {
	s, before := b.mesh[name], b.statuses[name]
	is := serviceStatus{since: now, token: before.token, holder: before.holder}
	is.condition, is.because = b.mesh.conditionOf(name)
	if s.serving.Held && s.serving.Token != before.token {
		is.token, is.holder = s.serving.Token, b.holder(s.serving.Lease)
	}
	switch {
	case is.condition == before.condition:
		is.since = before.since
	case before.condition == "" && s.serving.Held && !s.Since.IsZero():
		is.since = s.Since // from before the dashboard started
	}
	b.statuses[name] = is
	unchanged := is.condition == before.condition && slices.Equal(is.because, before.because) && is.token == before.token
	comingUp := is.condition == down && len(is.because) == 0 && before.condition != up && before.condition != degraded
	if unchanged || comingUp {
		return
	}
	text := describe(name, is.condition, is.because)
	if is.condition == before.condition && is.token != before.token {
		text = "held again, at " + s.Address
	}
	b.log = append(b.log, change{b.version, revision, now, name, is.condition, text})
}

// holder describes the process that has a lease. b.mu is held.
func (b *board) holder(lease clientv3.LeaseID) string {
	if owner, ok := b.owners[lease]; ok {
		return fmt.Sprintf("%s, process %d", owner.Host, owner.PID)
	}
	return fmt.Sprintf("lease %x", lease)
}

// names returns the names of all services, sorted. b.mu is held.
func (b *board) names() []string {
	names := make([]string, 0, len(b.mesh))
	for name := range b.mesh {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare[string])
	return names
}

// touch makes a new version although the mesh has not changed.
func (b *board) touch() { b.apply(time.Now()) }

// describe explains the condition of a service.
func describe(name string, c condition, because []string) string {
	others := slices.DeleteFunc(slices.Clone(because), func(cause string) bool { return cause == name })
	switch {
	case c == down && len(others) < len(because):
		return "down: not ready"
	case c == down && len(because) == 0:
		return "ready, about to serve"
	case c == neverSeen:
		return "needed, but never seen"
	case len(because) == 0:
		return string(c)
	}
	return fmt.Sprintf("%s because of %s", c, strings.Join(others, ", "))
}
