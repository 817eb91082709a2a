package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// kind names a kind of fault.
type kind string

// lane is what a kind of fault acts on. Faults of one lane follow one another, and lanes
// overlap. Client faults are drawn for two halves of the processes, which overlap as well.
type lane int

const (
	toClients lane = iota
	toCluster
)

// traits are the properties of a kind of fault.
type traits struct {
	kind
	lane
	from, to  float64 // range of its duration, in TTLs
	members   int     // minimum size of the cluster
	harmless  bool    // it must not cost a hold
	operator  bool    // it changes queues by hand, which holders notice only later
	oneMember bool    // one of three members is silent; clients must leave it for another
}

var allTraits = []traits{
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
	{kind: "cut-member", lane: toClients, from: 0.5, to: 1.5, members: 3, harmless: true, oneMember: true},
	{kind: "freeze-member-briefly", lane: toClients, from: 0.1, to: 0.4, members: 3, harmless: true, oneMember: true},
	{kind: "freeze-member", lane: toClients, from: 0.5, to: 4, members: 3, harmless: true, oneMember: true},
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

func traitsOf(k kind) traits {
	return allTraits[slices.IndexFunc(allTraits, func(c traits) bool { return c.kind == k })]
}

// fault is one fault of a schedule.
type fault struct {
	At     time.Duration // after the start
	Kind   kind
	Target int // index of a process or a member
	For    time.Duration
	Seed   uint64 // of its own random choices
	Alone  bool   // no other fault happens from a TTL before it to more than a TTL after it
}

func (f fault) String() string {
	return fmt.Sprintf("%6.2fs %-16s on %d for %v", f.At.Seconds(), f.Kind, f.Target, f.For.Round(time.Millisecond))
}

// plan is what a schedule is drawn from.
type plan struct {
	seed      uint64
	duration  time.Duration
	ttl       time.Duration
	members   int
	processes int
	only      []string      // kinds; all if empty
	rest      time.Duration // added to the pause after each fault of a lane
	lone      bool          // storms alternate with kills that happen alone
	long      bool          // one process has a long TTL, whatever the seed
}

// kinds returns the kinds of a lane that the plan allows.
func (p plan) kinds(l lane) (kinds []kind) {
	for _, c := range allTraits {
		if c.lane == l && c.members <= p.members && (len(p.only) == 0 || slices.Contains(p.only, string(c.kind))) {
			kinds = append(kinds, c.kind)
		}
	}
	return kinds
}

// In some rounds the process in longSlot has a TTL of longTTL, to show that bounds that
// should not grow with the TTL do not.
const (
	longTTL  = time.Minute
	longSlot = 3
)

// hasLong reports whether a process has a long TTL. A kill would block its names for longTTL.
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

// longest returns the longest TTL of any process.
func (p plan) longest() time.Duration { return max(p.ttl, p.leaseOf(longSlot)) }

// spare returns i, or the next of the n indexes from first on if process i must not be killed.
func (p plan) spare(k kind, i, first, n int) int {
	if k == "kill" && i == longSlot && p.hasLong() {
		return first + (i-first+1)%n
	}
	return i
}

// checkKinds returns an error if a kind does not exist.
func checkKinds(only []string) error {
	var all []string
	for _, c := range allTraits {
		all = append(all, string(c.kind))
	}
	for _, k := range only {
		if !slices.Contains(all, k) {
			return fmt.Errorf("there is no fault %q; there are %s", k, strings.Join(all, ", "))
		}
	}
	return nil
}

// storm is the duration of a storm, after which one kill happens alone.
const storm = 9 * time.Second

// takeOverBound is how long after a TTL a waiter may take over from a killed holder.
const takeOverBound = time.Second

// lull is the time allowed for the last faults of a storm to end before the quiet phase begins.
const lull = time.Second

// draw draws the schedule, which depends on nothing but the plan. If the plan has lone
// kills, they alternate with storms and show how long a take-over takes.
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

// dealer deals the kinds like cards: each comes once before any comes again.
type dealer struct {
	plan
	rnd   *rand.Rand
	decks map[lane][]kind
}

// deal fills an interval of a lane with faults on the given number of targets from first on.
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
		c := traitsOf(d.decks[l][0])
		d.decks[l] = d.decks[l][1:]
		length := time.Duration((c.from + d.rnd.Float64()*(c.to-c.from)) * float64(d.ttl))
		on := d.spare(c.kind, first+d.rnd.IntN(targets), first, targets)
		faults = append(faults, fault{At: at, Kind: c.kind, Target: on, For: min(length, to-at), Seed: d.rnd.Uint64()})
		at += length + d.rest + 100*time.Millisecond + d.upTo(500*time.Millisecond)
	}
	return faults
}

func (d *dealer) upTo(longest time.Duration) time.Duration {
	return time.Duration(d.rnd.Int64N(int64(longest)))
}
