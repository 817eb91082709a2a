package main

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func TestReceiveLast_IsTheTimeOfTheLastAndNotOfTheLastAsked(t *testing.T) {
	t.Parallel()
	began := time.Now()
	channels := make([]<-chan arrival, 3)
	for i, after := range []time.Duration{time.Second, 3 * time.Second, 2 * time.Second} {
		arrivals := make(chan arrival, 2)
		arrivals <- arrival{began.Add(time.Hour), "another"}
		arrivals <- arrival{began.Add(after), "awaited"}
		channels[i] = arrivals
	}
	if last, err := receiveLast(testContext(t), channels, "awaited", began); err != nil || last != 3*time.Second {
		t.Errorf("%v, %v", last, err)
	}
	ended := make(chan arrival)
	close(ended)
	if _, err := receiveLast(testContext(t), []<-chan arrival{ended}, "awaited", began); !errors.Is(err, errWatchEnded) {
		t.Errorf("of a watch that ended: %v", err)
	}
}

func TestRequestsOfReaders_AreThoseBesideChecks(t *testing.T) {
	t.Parallel()
	var all counters
	for range 2 {
		all = all.plus(counters{sent: 100, reads: 20})
	}
	if got := all.sentBesideChecks(); got != 200-40*messagesPerCheck {
		t.Errorf("%v beside checks, of %+v", got, all)
	}
}

// The figures of readers would be wrong if a check took another number of messages.
func TestCheck_OfAWatchIsSoManyMessages(t *testing.T) {
	t.Parallel()
	r := fakeRunner()
	r.etcd.Dir, r.etcd.Program = t.TempDir(), buildEtcd(t)
	cluster, stop, err := r.startCluster(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	a := &arena{endpoints: cluster.Endpoints(), id: r.id}
	defer func() { _ = a.close() }()
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	connections, err := a.connections(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	observer, err := a.connect()
	if err != nil {
		t.Fatal(err)
	}
	clients, err := newLockers(a, []*clientv3.Client{observer, connections[0]}, 2, locker.WithTTL(longTTL))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := clients[0].Lock(ctx, "n", ""); err != nil {
		t.Fatal(err)
	}
	reader := make(chan error, 1)
	go func() {
		_, err := clients[1].Lock(ctx, "n", "", locker.WithShared())
		reader <- err
	}()
	first := a.awaitReads(t, 2) // the wait itself may have begun with the first
	checks := a.awaitReads(t, 6).since(first)
	if beside := checks.sentBesideChecks(); beside < -2 || beside > 2 { // one may be under way
		t.Errorf("%v messages for %v checks", checks.sent, checks.reads)
	}
	cancel()
	if err := <-reader; !errors.Is(err, context.Canceled) {
		t.Errorf("the reader: %v", err)
	}
}

// awaitReads waits until the connections have made so many reads.
func (a *arena) awaitReads(t *testing.T, n float64) counters {
	t.Helper()
	for {
		if now := a.traffic.now(); now.reads >= n {
			return now
		}
		if err := pause(testContext(t), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}
