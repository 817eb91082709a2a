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

// remembered is how many changes the dashboard keeps.
const remembered = 200

// board is what the dashboard knows: the mesh now, and its last changes.
type board struct {
	epoch string // tells this board's versions from those of another run

	mu      sync.Mutex // guards what follows
	mesh    picture
	shown   map[string]shown
	owners  map[clientv3.LeaseID]locker.Owner
	log     []change // the oldest first
	version int64
	dropped int64         // version of the last change that the log has no more
	changed chan struct{} // closed at the next version
}

// shown is what the board last said of a service.
type shown struct {
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
		epoch:   strconv.FormatUint(uint64(rand.Uint32()), 36),
		mesh:    make(picture),
		shown:   make(map[string]shown),
		owners:  make(map[clientv3.LeaseID]locker.Owner),
		changed: make(chan struct{}),
	}
}

// follow keeps the board up to date until ctx ends. It reads from one source, for a watch
// that begins after a list never tells what went between the two.
func (b *board) follow(ctx context.Context, client *locker.Client, cache *locker.Cache) {
	for held := []locker.Holder(nil); ; {
		changed := cache.Changed()
		now := cache.List()
		states := differences(held, now, cache.Revision())
		b.meet(ctx, client, now)
		b.take(time.Now(), states...)
		held = now
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// differences returns the states of the names that are not held as they were before.
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

// meet finds out which processes the holders are, if one is not known yet. If etcd does
// not answer now, it stays unknown until its next record.
func (b *board) meet(ctx context.Context, client *locker.Client, holders []locker.Holder) {
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

// take takes in states that were true at one revision, and makes a new version.
func (b *board) take(now time.Time, states ...locker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var revision int64
	for _, state := range states {
		b.mesh.take(state)
		revision = max(revision, state.Revision, state.Token)
	}
	b.version++
	names := b.names()
	slices.SortStableFunc(names, func(one, other string) int { // causes before what follows from them
		return cmp.Compare(b.mesh.rank(one), b.mesh.rank(other))
	})
	for _, name := range names {
		b.compare(name, revision, now)
	}
	if n := len(b.log) - remembered; n > 0 {
		b.dropped = b.log[n-1].Version
		b.log = slices.Delete(b.log, 0, n)
	}
	close(b.changed)
	b.changed = make(chan struct{})
}

// compare writes a line into the log if a service is not what it was.
func (b *board) compare(name string, revision int64, now time.Time) {
	s, before := b.mesh[name], b.shown[name]
	is := shown{since: now, token: before.token, holder: before.holder}
	is.condition, is.because = b.mesh.judge(name)
	if s.serving.Held && s.serving.Token != before.token {
		is.token, is.holder = s.serving.Token, b.holder(s.serving.Lease)
	}
	switch {
	case is.condition == before.condition:
		is.since = before.since
	case before.condition == "" && s.serving.Held && !s.Since.IsZero():
		is.since = s.Since // of before the dashboard began
	}
	b.shown[name] = is
	unchanged := is.condition == before.condition && slices.Equal(is.because, before.because) && is.token == before.token
	comingUp := is.condition == down && len(is.because) == 0 && before.condition != up && before.condition != degraded
	if unchanged || comingUp {
		return
	}
	text := reason(name, is.condition, is.because)
	if is.condition == before.condition && is.token != before.token {
		text = "held anew, at " + s.Address
	}
	b.log = append(b.log, change{b.version, revision, now, name, is.condition, text})
}

// holder says which process has a lease. b.mu is held.
func (b *board) holder(lease clientv3.LeaseID) string {
	if owner, ok := b.owners[lease]; ok {
		return fmt.Sprintf("%s, process %d", owner.Host, owner.PID)
	}
	return fmt.Sprintf("lease %x", lease)
}

// names returns all services, by name. b.mu is held.
func (b *board) names() []string {
	names := make([]string, 0, len(b.mesh))
	for name := range b.mesh {
		names = append(names, name)
	}
	slices.SortFunc(names, cmp.Compare[string])
	return names
}

// touch makes a new version of the same mesh.
func (b *board) touch() { b.take(time.Now()) }

// reason says in words why a service is what it is.
func reason(name string, c condition, because []string) string {
	others := slices.DeleteFunc(slices.Clone(because), func(cause string) bool { return cause == name })
	switch {
	case c == down && len(others) < len(because):
		return "down by itself"
	case c == down && len(because) == 0:
		return "ready, about to serve"
	case c == neverSeen:
		return "needed, but never seen"
	case len(because) == 0:
		return string(c)
	}
	return fmt.Sprintf("%s because %s", c, strings.Join(others, ", "))
}
