package main

import (
	"fmt"
	"time"
)

// workload is the amount of work that the rows do.
type workload struct {
	rounds  int
	quick   bool          // too little work for figures that mean much
	runUp   time.Duration // before counting starts in a race; extended for each client
	period  time.Duration // of a round that measures for a fixed time
	history int           // previous acquisitions of the used name
	holds   int
	waiters int
	bulk    int
	bulkTTL time.Duration
	crowd   int           // clients in a queue
	idle    time.Duration // for how long their idle traffic is measured
	queue   int           // entries in a queue without clients
	company int           // other shared holders of a name
	readers int           // that wait for a writer
	few     int           // rounds of the slow rows; 0 for as many as the others
}

var (
	fullWorkload = workload{
		rounds: 5, runUp: 500 * time.Millisecond, period: 3 * time.Second, history: 100_000, holds: 20_000, waiters: 5_000,
		bulk: 100_000, bulkTTL: 10 * time.Second, crowd: 1_000, idle: 3 * time.Second, queue: 10_000,
		company: 1_000, readers: 500,
	}
	quickWorkload = workload{
		rounds: 3, quick: true, runUp: 100 * time.Millisecond, period: 200 * time.Millisecond, history: 1_000, holds: 2_000, waiters: 500,
		bulk: 5_000, bulkTTL: 3 * time.Second, crowd: 200, idle: time.Second, queue: 1_000,
		company: 200, readers: 50, few: 1,
	}
)

// rows returns the rows of the table: what is measured, for which sides, and the targets.
func rows(w workload) []row {
	return []row{
		{
			id: "P1", work: "lock + unlock, one goroutine, free name",
			sides: append([]side{putDelete, uncontended(lockerService), uncontended(mutexService)}, ofPeers(uncontended)...),
			lines: []line{{figure: p50, unit: "µs", against: floor, target: atMost(1.10)}},
		},
		{
			id: "P2", work: "256 goroutines, 256 names, one client",
			sides: append([]side{flatTransactions(120)}, allSides(goroutinesOnOwnNames, 256)...),
			lines: []line{
				{figure: rate, unit: "locks/s", against: etcdMutex, target: atLeast(3.5)},
				{figure: rate, unit: "locks/s", against: floor, target: atLeast(0.80)},
			},
		},
		{
			id: "P3", work: "64 goroutines, 64 names, one client",
			sides: append([]side{flatTransactions(32)}, allSides(goroutinesOnOwnNames, 64)...),
			lines: []line{
				{figure: rate, unit: "locks/s", against: etcdMutex, target: atLeast(2.2)},
				{figure: rate, unit: "locks/s", against: floor, target: atLeast(0.85)},
			},
		},
		{
			id: "P4", work: "2 clients on one name",
			sides: append([]side{deletesInTurn, writesInTurn}, allSides(clientsOnOneName, 2)...),
			lines: []line{handOvers(1.15), besideWrites},
		},
		{
			id: "P5", work: "2 clients on one name, Unlock starts → next holds",
			sides: []side{deleteEvent, handOver},
			lines: []line{{figure: p50, unit: "µs", against: floor, target: atMost(1.15)}},
		},
		{
			id: "P6", work: "8 clients on one name",
			sides: append([]side{deletesInTurn, writesInTurn}, allSides(clientsOnOneName, 8)...),
			lines: []line{handOvers(1.15), besideWrites, {what: "Unlock starts → next holds", figure: p50, unit: "µs", against: floor, target: atMost(1.15)}},
		},
		{
			id: "P7", work: "32 clients on one name", rounds: w.few,
			sides: append([]side{deletesInTurn, writesInTurn}, allSides(clientsOnOneName, 32)...),
			lines: []line{handOvers(1.25), besideWrites},
		},
		{
			id: "P7", work: "128 clients on one name", rounds: w.few,
			sides: append([]side{deletesInTurn, writesInTurn}, allSides(clientsOnOneName, 128)...),
			lines: []line{handOvers(1.40), besideWrites},
		},
		{
			id: "P8", work: "64 goroutines of one client on one name", rounds: w.few,
			sides: append([]side{replacements, goroutinesOnOneName(lockerService, 64), mutexGoroutinesOnOneName(64)}, ofPeers(func(s service) side { return goroutinesOnOneName(s, 64) })...),
			lines: []line{handOvers(1.10)},
		},
		{
			id: "P9", work: fmt.Sprintf("lock + unlock of a name after %d acquisitions, no compaction", w.history),
			sides: []side{freshName, usedName},
			lines: []line{{figure: p50, unit: "µs", against: freshName.name, target: atMost(1.1)}},
		},
		{
			id: "P10", work: fmt.Sprintf("%d held locks", w.holds),
			sides: []side{heldLocks},
			lines: []line{
				{what: "heap per lock", figure: heap, unit: "bytes", target: atMost(600)},
				{what: "goroutines per lock", figure: goroutines, target: atMost(0.01)}, // the sessions have some
			},
		},
		{
			id: "P11", work: fmt.Sprintf("%d waiting locks, each on its own name", w.waiters), rounds: w.few,
			sides: []side{waitingLocks(lockerService, lockerPrefix), waitingLocks(mutexService, mutexPrefix)},
			lines: []line{
				{what: "heap and stacks per lock", figure: memory, unit: "bytes", target: atMost(6000)},
				{what: "goroutines per lock besides the caller's", figure: goroutines, target: atMost(0.01)},
			},
		},
		{
			id: "P12", work: fmt.Sprintf("%d locks held by one client", w.bulk), rounds: w.few,
			sides: []side{bulkPuts, bulkLocks},
			lines: []line{
				{what: "acquiring all", figure: acquireTime, unit: "s", against: floor, target: atMost(1.3)},
				{what: "renewals per lease in TTL/3", figure: renewals, unit: "requests", target: atMost(1)},
				{what: "Close", figure: closeTime, unit: "s", target: atMost(2)},
			},
		},
		{
			id: "P13", work: fmt.Sprintf("Cache.Get, %d names", cached),
			sides: []side{mapGet, cacheGet},
			lines: []line{
				{figure: nanoseconds, unit: "ns", against: mapGet.name, target: atMost(1.2)},
				{figure: allocations, unit: "allocations", target: atMost(0)},
			},
		},
		{
			id: "P14", work: "value changed → Watch yields it",
			sides: []side{putEvent, changes},
			lines: []line{{figure: p50, unit: "µs", against: floor, target: atMost(1.15)}},
		},
		{
			id: "P15", work: fmt.Sprintf("%d clients waiting on one name", w.crowd), rounds: w.few,
			sides: []side{crowd(aTenth, w.crowd/10), crowd(ours, w.crowd)},
			lines: []line{
				{figure: requests, unit: "requests/hand-over", target: atMost(5)},
				{what: "compared with a tenth as many", figure: requests, unit: "requests/hand-over", against: aTenth, target: atMost(1.1)},
				{what: "while nothing happens", figure: idleMessages, unit: "messages/s per client"},
			},
		},
		{
			id: "P15", work: fmt.Sprintf("a waiter's read in a queue of %d, compared with a tenth as many", w.queue),
			sides: []side{look(aTenth, w.queue/10), look(ours, w.queue)},
			lines: []line{{figure: p50, unit: "µs", against: aTenth, target: below(10)}},
		},
		{
			id: "P16", work: "dependencies of an importer beyond etcd's client", rounds: 1,
			sides: []side{linked},
			lines: []line{
				{figure: modules, unit: "modules", target: atMost(0)},
				{figure: servers, unit: "server packages", target: atMost(0)},
			},
		},
		{
			id: "P17", work: fmt.Sprintf("lock + unlock, shared, beside %d shared holders", w.company),
			sides: []side{sharedBeside(freeName, 0), sharedBeside(ours, w.company)},
			lines: []line{{figure: p50, unit: "µs", against: freeName, target: atMost(1.2)}},
		},
		{
			id: "P18", work: fmt.Sprintf("%d readers, a client each, behind a writer", w.readers), rounds: w.few,
			sides: []side{deleteEvents(w.readers), readersBehindWriter(w.readers)},
			lines: []line{
				{what: "its Unlock starts → the last one holds", figure: p50, unit: "µs", against: floor, target: atMost(1.5)},
				{what: "messages from Lock to hold, without checks of the watch", figure: requests, unit: "requests/reader", target: atMost(3)},
				{what: "of these, after its Unlock started", figure: requestsToWake, unit: "requests/reader"},
			},
		},
		{
			id: "P19", work: fmt.Sprintf("limit %d, %d clients, %v of work", limit, limitedClients, limitedWork), rounds: w.few,
			sides: []side{withoutLocks, limited},
			lines: []line{{figure: rate, unit: "holds/s", against: withoutLocks.name, target: atLeast(0.75)}},
		},
		{
			id: "P20", work: fmt.Sprintf("lock + unlock of %d names in one lock", together),
			sides: []side{namesTogether(oneName, 1), namesTogether(ours, together)},
			lines: []line{{figure: p50, unit: "µs", against: oneName, target: atMost(1.5)}},
		},
		{
			id: "P21", work: "lock + unlock with hooks that are not used",
			sides: []side{withoutHooks, unusedHooks},
			lines: []line{
				{figure: p50, unit: "µs", against: withoutHooks.name, target: atMost(1.01)},
				{figure: allocations, unit: "allocations", against: withoutHooks.name, target: atMost(1)},
			},
		},
	}
}

// handOvers is the line of a row of hand-overs, each of which may take so much longer than
// one of the floor.
func handOvers(most float64) line {
	return line{figure: rate, unit: "hand-overs/s", against: floor, ofTimes: true, target: atMost(most)}
}

// besideWrites compares with a floor that has both writes of a hand-over.
var besideWrites = line{what: "beside a delete and a put", figure: rate, unit: "hand-overs/s", against: writesInTurn.name, ofTimes: true}

// allSides returns the sides of Locker, Mutex and the peers, each made by do with n
// clients or goroutines.
func allSides(do func(s service, n int) side, n int) []side {
	return append([]side{do(lockerService, n), do(mutexService, n)}, ofPeers(func(s service) side { return do(s, n) })...)
}
