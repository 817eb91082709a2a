package main

import (
	"fmt"
	"time"
)

// scale is how much work the rows do.
type scale struct {
	rounds  int
	quick   bool          // less than what the figures are for
	runUp   time.Duration // before a race is counted; more with many clients
	period  time.Duration // of a round that takes its time
	history int           // acquisitions of the used name
	holds   int
	waiters int
	bulk    int
	bulkTTL time.Duration
	crowd   int
	few     int // rounds of a row that takes long; 0: as many as of others
}

var (
	fullScale = scale{
		rounds: 5, runUp: 500 * time.Millisecond, period: 3 * time.Second, history: 100_000, holds: 20_000, waiters: 5_000,
		bulk: 100_000, bulkTTL: 10 * time.Second, crowd: 1_000,
	}
	quickScale = scale{
		rounds: 3, quick: true, runUp: 100 * time.Millisecond, period: 200 * time.Millisecond, history: 1_000, holds: 2_000, waiters: 500,
		bulk: 5_000, bulkTTL: 3 * time.Second, crowd: 200, few: 1,
	}
)

// rows is the table: what is measured, between whom, and what should come out.
func rows(s scale) []row {
	return []row{
		{
			id: "P1", work: "lock + unlock, one goroutine, free name",
			sides: append([]side{putDelete, alone(lockers), alone(mutexes)}, ofPeers(alone)...),
			lines: []line{{figure: p50, unit: "µs", against: floor, target: atMost(1.10)}},
		},
		{
			id: "P2", work: "256 goroutines, 256 names, one client",
			sides: against(apart, 256),
			lines: []line{{figure: rate, unit: "locks/s", against: mutual, target: atLeast(2.5)}},
		},
		{
			id: "P3", work: "64 goroutines, 64 names, one client",
			sides: against(apart, 64),
			lines: []line{{figure: rate, unit: "locks/s", against: mutual, target: atLeast(1.8)}},
		},
		{
			id: "P4", work: "2 clients on one name",
			sides: against(among, 2),
			lines: []line{{figure: rate, unit: "hand-overs/s", against: mutual, target: atLeast(40)}},
		},
		{
			id: "P5", work: "2 clients on one name, release begun → other holds",
			sides: []side{deleteEvent, handOver},
			lines: []line{{figure: p50, unit: "µs", against: floor, target: atMost(1.6)}},
		},
		{
			id: "P6", work: "8 clients on one name",
			sides: append([]side{deleteEvent}, against(among, 8)...),
			lines: []line{
				{figure: rate, unit: "hand-overs/s", against: mutual, target: atLeast(10)},
				{what: "release begun → other holds", figure: p50, unit: "µs", against: floor, target: atMost(2)},
			},
		},
		{
			id: "P7", work: "32 clients on one name",
			sides: against(among, 32),
			lines: []line{{figure: rate, unit: "hand-overs/s", against: mutual, target: atLeast(2.2)}},
		},
		{
			id: "P7", work: "128 clients on one name",
			sides: against(among, 128),
			lines: []line{{figure: rate, unit: "hand-overs/s", against: mutual, target: atLeast(1.3)}},
		},
		{
			id: "P8", work: "64 goroutines of one client on one name",
			sides: append([]side{inside(lockers, 64), insideMutexes(64)}, ofPeers(func(s service) side { return inside(s, 64) })...),
			lines: []line{{figure: rate, unit: "hand-overs/s", against: mutual, target: atLeast(4)}},
		},
		{
			id: "P9", work: fmt.Sprintf("lock + unlock of a name after %d acquisitions, no compaction", s.history),
			sides: []side{freshName, usedName},
			lines: []line{{figure: p50, unit: "µs", against: freshName.name, target: atMost(1.2)}},
		},
		{
			id: "P10", work: fmt.Sprintf("%d held locks", s.holds),
			sides: []side{holding},
			lines: []line{
				{what: "heap of each", figure: heap, unit: "bytes", target: atMost(1024)},
				{what: "goroutines of each", figure: goroutines, target: atMost(0.01)}, // those of the sessions
			},
		},
		{
			id: "P11", work: fmt.Sprintf("%d waiting locks, each on a name of its own", s.waiters), rounds: s.few,
			sides: []side{waiting(lockers, lockerPrefix), waiting(mutexes, mutexPrefix)},
			lines: []line{
				{what: "heap and stacks of each", figure: memory, unit: "bytes", target: atMost(8192)},
				{what: "goroutines besides the caller's", figure: goroutines, target: atMost(1.01)}, // a hundredth: those of the sessions
			},
		},
		{
			id: "P12", work: fmt.Sprintf("%d locks held by one client", s.bulk), rounds: s.few,
			sides: []side{bulkPuts, bulkLocks},
			lines: []line{
				{what: "to take them", figure: taken, unit: "s", against: floor, target: atMost(1.5)},
				{what: "renewals of a lease in TTL/3", figure: renewals, unit: "requests", target: atMost(1)},
				{what: "Close", figure: closed, unit: "s", target: atMost(5)},
			},
		},
		{
			id: "P13", work: fmt.Sprintf("Cache.Get, %d names", cached),
			sides: []side{mapGet, cacheGet},
			lines: []line{
				{figure: nanoseconds, unit: "ns", against: mapGet.name, target: atMost(2)},
				{figure: allocations, unit: "allocations", target: atMost(0)},
			},
		},
		{
			id: "P14", work: "value changed → Watch yields it",
			sides: []side{putEvent, changes},
			lines: []line{{figure: p50, unit: "µs", against: floor, target: atMost(1.5)}},
		},
		{
			id: "P15", work: fmt.Sprintf("%d clients waiting on one name", s.crowd), rounds: s.few,
			sides: []side{crowd("few", 10), crowd("a tenth", s.crowd/10), crowd(ours, s.crowd)},
			lines: []line{
				{what: "against a tenth as many", figure: requests, unit: "requests/hand-over", against: "a tenth", target: atMost(1.1)},
				{what: "against 10", figure: requests, unit: "requests/hand-over", against: "few"},
			},
		},
		{
			id: "P16", work: "linked by an importer, beyond etcd's client", rounds: 1,
			sides: []side{linked},
			lines: []line{
				{figure: modules, unit: "modules", target: atMost(0)},
				{figure: servers, unit: "server packages", target: atMost(0)},
			},
		},
	}
}

// against is Locker against Mutex and the peers, all doing what n of something do.
func against(do func(s service, n int) side, n int) []side {
	return append([]side{do(lockers, n), do(mutexes, n)}, ofPeers(func(s service) side { return do(s, n) })...)
}
