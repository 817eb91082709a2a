package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// kind is a kind of fault.
type kind string

// lane is what a kind of fault acts on. Faults of one lane follow each other, those of different lanes
// overlap. There are two lanes of clients, each with processes of its own.
type lane int

const (
	toClients lane = iota
	toCluster
)

// character is what is known of a kind of fault.
type character struct {
	kind
	lane
	from, to float64 // how long it lasts, in TTLs
	members  int     // the least it needs
	harmless bool    // it must not cost a hold
	operator bool    // it breaks into queues by hand, which holders learn of only later
	detour   bool    // one member of three does not answer, which has to be left for another soon
}

var characters = []character{
	{kind: "kill", lane: toClients, to: 0.5},
	{kind: "stop-briefly", lane: toClients, from: 0.01, to: 0.05, harmless: true},
	{kind: "stop", lane: toClients, from: 1.4, to: 2.2},
	{kind: "stop-half", lane: toClients, from: 1, to: 1.5},
	{kind: "cut", lane: toClients, from: 0.1, to: 1.8},
	{kind: "reset", lane: toClients, harmless: true},
	{kind: "freeze", lane: toClients, from: 0.1, to: 1.8},
	{kind: "drop-replies", lane: toClients, from: 0.1, to: 1.5},
	{kind: "delay", lane: toClients, from: 0.5, to: 1},
	{kind: "throttle", lane: toClients, from: 0.5, to: 1.5, harmless: true},
	{kind: "dead-connections", lane: toClients, from: 0.5, to: 2.2},
	{kind: "repeat-writes", lane: toClients, from: 0.5, to: 1.5, harmless: true},
	{kind: "lose-events", lane: toClients, from: 0.2, to: 0.3},
	{kind: "late-answer", lane: toClients, from: 1.6, to: 1.7},
	{kind: "cut-member", lane: toClients, from: 0.5, to: 1.5, members: 3, harmless: true, detour: true},
	{kind: "freeze-member-briefly", lane: toClients, from: 0.1, to: 0.4, members: 3, harmless: true, detour: true},
	{kind: "freeze-member", lane: toClients, from: 0.5, to: 4, members: 3, harmless: true, detour: true},
	{kind: "delete-entry", lane: toClients, operator: true},
	{kind: "revoke-lease", lane: toClients, operator: true},
	{kind: "foreign-entry", lane: toClients, from: 0.1, to: 0.4, harmless: true},
	{kind: "compact", lane: toCluster, from: 0.3, to: 1, harmless: true},
	{kind: "restart", lane: toCluster},
	{kind: "away", lane: toCluster, from: 1.2, to: 1.6},
	{kind: "stop-member", lane: toCluster, from: 0.2, to: 1.5},
	{kind: "stop-member-half", lane: toCluster, from: 0.5, to: 1},
	{kind: "no-space", lane: toCluster, from: 0.2, to: 0.5, harmless: true},
	{kind: "stop-leader", lane: toCluster, from: 0.2, to: 1.5, members: 3},
	{kind: "kill-leader", lane: toCluster, from: 0.1, to: 0.5, members: 3},
	{kind: "move-leader", lane: toCluster, members: 3},
	{kind: "rolling-restart", lane: toCluster, members: 3},
	{kind: "quorum-lost", lane: toCluster, from: 1.2, to: 1.8, members: 3},
}

func characterOf(k kind) character {
	return characters[slices.IndexFunc(characters, func(c character) bool { return c.kind == k })]
}

// fault is one that is to come.
type fault struct {
	At     time.Duration // after the start
	Kind   kind
	Target int // a process or a member
	For    time.Duration
	Seed   uint64 // for what it draws while it acts
	Alone  bool   // nothing else happens from a TTL before to a TTL and some more after
}

func (f fault) String() string {
	return fmt.Sprintf("%6.2fs %-16s on %d for %v", f.At.Seconds(), f.Kind, f.Target, f.For.Round(time.Millisecond))
}

// plan is what a schedule is drawn for.
type plan struct {
	seed      uint64
	duration  time.Duration
	ttl       time.Duration
	members   int
	processes int
	only      []string      // kinds; empty for all
	rest      time.Duration // at least, after each fault of a lane
	lone      bool          // now and then there is a kill with nothing else around it
	long      bool          // one process has a long TTL, whatever the seed is
}

// kinds returns those that the plan allows in a lane.
func (p plan) kinds(l lane) (kinds []kind) {
	for _, c := range characters {
		if c.lane == l && c.members <= p.members && (len(p.only) == 0 || slices.Contains(p.only, string(c.kind))) {
			kinds = append(kinds, c.kind)
		}
	}
	return kinds
}

// longTTL is that of one process in some rounds: what others do in a third of a TTL must not last longer there.
const (
	longTTL  = time.Minute
	longSlot = 3
)

// hasLong reports whether there is such a process. It is not killed: its names would be blocked for longTTL.
func (p plan) hasLong() bool {
	return (p.long || p.seed%3 == 0 && len(p.only) == 0) && p.processes > longSlot
}

// leaseOf returns the TTL of the locks of the process in a slot.
func (p plan) leaseOf(slot int) time.Duration {
	if slot == longSlot && p.hasLong() {
		return longTTL
	}
	return p.ttl
}

// longest returns the longest TTL that a process has.
func (p plan) longest() time.Duration { return max(p.ttl, p.leaseOf(longSlot)) }

// spare replaces a process that is not to be killed by another of the same.
func (p plan) spare(k kind, target, first, targets int) int {
	if k == "kill" && target == longSlot && p.hasLong() {
		return first + (target-first+1)%targets
	}
	return target
}

// checkKinds returns an error for a kind that there is not.
func checkKinds(only []string) error {
	var all []string
	for _, c := range characters {
		all = append(all, string(c.kind))
	}
	for _, k := range only {
		if !slices.Contains(all, k) {
			return fmt.Errorf("there is no fault %q; there are %s", k, strings.Join(all, ", "))
		}
	}
	return nil
}

// storm is how long faults come thick and fast before one has the stage for itself.
const storm = 9 * time.Second

// takeOverBound is how much later than a TTL a waiter may take over from a holder that was killed.
const takeOverBound = time.Second

// lull is what the last faults of a storm may need to be really over, before the time without any begins.
const lull = time.Second

// draw makes the schedule, always the same from the same plan. If it is to have them, kills with nothing
// else around them, which show how long a take-over lasts, alternate with storms.
func (p plan) draw() (faults []fault) {
	d := dealer{plan: p, rnd: rand.New(rand.NewPCG(p.seed, 1)), decks: make(map[lane][]kind)}
	quiet := p.ttl + takeOverBound + 500*time.Millisecond
	for at := 500 * time.Millisecond; at < p.duration; {
		if p.lone && slices.Contains(p.kinds(toClients), "kill") {
			at += p.ttl + lull
			faults = append(faults, fault{At: at, Kind: "kill", Target: p.spare("kill", d.rnd.IntN(p.processes), 0, p.processes), Seed: d.rnd.Uint64(), Alone: true})
			at += quiet
		}
		end := p.duration
		if p.lone {
			end = min(at+storm, end)
		}
		half := (p.processes + 1) / 2
		faults = append(faults, d.deal(toClients, at, end, 0, half)...)
		faults = append(faults, d.deal(toClients, at, end, half, p.processes-half)...)
		faults = append(faults, d.deal(toCluster, at, end, 0, p.members)...)
		at = end
	}
	slices.SortStableFunc(faults, func(a, b fault) int { return int(a.At - b.At) })
	return slices.DeleteFunc(faults, func(f fault) bool { return f.At >= p.duration })
}

// dealer deals kinds like cards: each comes once before any comes again.
type dealer struct {
	plan
	rnd   *rand.Rand
	decks map[lane][]kind
}

// deal fills a stretch of a lane with faults on targets from first on.
func (d *dealer) deal(l lane, from, to time.Duration, first, targets int) (faults []fault) {
	if targets == 0 || len(d.kinds(l)) == 0 {
		return nil
	}
	for at := from + d.upTo(300*time.Millisecond); at < to; {
		if len(d.decks[l]) == 0 {
			kinds := d.kinds(l)
			d.rnd.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
			d.decks[l] = kinds
		}
		c := characterOf(d.decks[l][0])
		d.decks[l] = d.decks[l][1:]
		length := time.Duration((c.from + d.rnd.Float64()*(c.to-c.from)) * float64(d.ttl))
		target := d.spare(c.kind, first+d.rnd.IntN(targets), first, targets)
		faults = append(faults, fault{At: at, Kind: c.kind, Target: target, For: min(length, to-at), Seed: d.rnd.Uint64()})
		at += length + d.rest + 100*time.Millisecond + d.upTo(500*time.Millisecond)
	}
	return faults
}

func (d *dealer) upTo(longest time.Duration) time.Duration {
	return time.Duration(d.rnd.Int64N(int64(longest)))
}
