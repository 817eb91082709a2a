//go:build unix

package faults

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/etcdproc"
	"github.com/jagregory/locker/v2/internal/key"
)

// scenario is a cluster with client processes and an observer. At the end of the test,
// every client process ends in an orderly way, and then the scenario checks what is left
// in etcd, what the clients reported and what was observed.
type scenario struct {
	t        *testing.T
	ttl      time.Duration
	cluster  *etcdproc.Cluster
	members  int
	etcd     *clientv3.Client // the connection of the test itself
	meter    *meter
	names    []string
	observer *observer
	resource resource
	clients  []*process

	watchMaySkip bool    // because states may follow each other too fast
	leftAt       instant // when something was left that only the expiry of its lease removes
}

// resource is a resource outside etcd that is fenced by tokens: for each name, the
// largest token.
type resource map[string]int64

// write reports whether the resource accepts a write. It refuses a token smaller than an
// earlier one.
func (r resource) write(name string, token int64) bool {
	if token < r[name] {
		return false
	}
	r[name] = token
	return true
}

// start starts a cluster.
func start(t *testing.T, members int, ttl time.Duration) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildTimeout)
	defer cancel()
	program, err := etcdproc.Build(ctx, version, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	s := &scenario{t: t, ttl: ttl, members: members, resource: make(resource)}
	if s.cluster, err = etcdproc.Start(ctx, etcdproc.Options{Program: program, Members: members}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.cluster.Close)
	if s.etcd, err = connect(s.cluster.Endpoints()...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.etcd.Close() })
	s.meter = newMeter()
	t.Cleanup(s.meter.end)
	t.Cleanup(s.end)
	return s
}

// testContext returns a context for work that has no bound of its own.
func (s *scenario) testContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), testTimeout)
}

// endpoints returns the addresses of the given members, or of all if none are given.
func (s *scenario) endpoints(members ...int) (endpoints []string) {
	if len(members) == 0 {
		return s.cluster.Endpoints()
	}
	for _, member := range members {
		endpoints = append(endpoints, s.cluster.Member(member).Endpoint())
	}
	return endpoints
}

// observe starts the observer of the names, with a connection to the given members or to
// all.
func (s *scenario) observe(names []string, members ...int) {
	s.t.Helper()
	s.names = names
	s.observer = newObserver(s.t, s.ttl, names, s.endpoints(members...))
}

// client starts a client process with a connection to the given members or to all.
func (s *scenario) client(name string, members ...int) *process {
	s.t.Helper()
	return s.clientWith(s.ttl, name, members...)
}

// clientWith is like client with another TTL.
func (s *scenario) clientWith(ttl time.Duration, name string, members ...int) *process {
	s.t.Helper()
	p := newProcess(s.t, command{Process: name, Endpoints: s.endpoints(members...), TTL: ttl})
	s.clients = append(s.clients, p)
	return p
}

// lock has a client lock a name and waits until the observer has seen the hold.
func (s *scenario) lock(p *process, name string) report {
	s.t.Helper()
	r := p.do("lock", name)
	s.awaitObserved(r)
	return r
}

// enqueue has a client call Lock and waits until the queue of the name has n entries. It
// returns the ID of the command.
func (s *scenario) enqueue(p *process, name string, n int) (id int) {
	s.t.Helper()
	id = p.send(command{Verb: "lock", Name: name, Timeout: 2 * testTimeout})
	s.eventually("the queue has the right length", func(ctx context.Context) bool { return s.count(ctx, queuePrefix(name)) == n })
	return id
}

// awaitHold waits until a lock command has succeeded and the observer has seen the hold.
func (s *scenario) awaitHold(p *process, id int) report {
	s.t.Helper()
	r := p.answer(id)
	p.want(r, "")
	s.awaitObserved(r)
	return r
}

// awaitObserved waits until Watch and Cache show a hold.
func (s *scenario) awaitObserved(hold report) {
	s.t.Helper()
	s.eventually("the observer has seen the hold", func(context.Context) bool {
		watched, cached := s.observer.newest(hold.Name)
		return watched.Token == hold.Token && cached.Token == hold.Token
	})
}

// checkHeld waits for another renewal of a hold and fails the test if the client has lost
// it.
func (s *scenario) checkHeld(p *process, hold report) {
	s.t.Helper()
	s.awaitRenewal(p, hold.Name)
	if r := p.do("err", hold.Name); r.Token != hold.Token {
		s.t.Fatalf("%s has token %d, want %d", p.name, r.Token, hold.Token)
	}
	if p.hasReported(func(r report) bool { return r.ID == hold.ID && r.Verb == "ended" }) {
		s.t.Fatalf("%s lost its hold", p.name)
	}
}

// awaitRenewal waits for the next renewal of a hold's session, after which the deadline
// is almost as far away as it can be.
func (s *scenario) awaitRenewal(p *process, name string) {
	s.t.Helper()
	before := p.do("deadline", name)
	s.eventually("the hold is renewed", func(context.Context) bool { return p.do("deadline", name).Until > before.Until.add(tick) })
}

// eventually calls condition until it is true. what completes the sentence "timed out
// waiting until".
func (s *scenario) eventually(what string, condition func(context.Context) bool) {
	s.t.Helper()
	if !s.poll(testTimeout, condition) {
		s.t.Fatalf("timed out waiting until %s", what)
	}
}

// poll calls condition until it is true. It returns false if that takes longer than limit.
func (s *scenario) poll(limit time.Duration, condition func(context.Context) bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for !condition(ctx) {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

func queuePrefix(name string) string { return key.NewSpace(locker.DefaultPrefix).Queue(name) }

// count returns the number of keys with a prefix, or -1 if etcd does not answer soon.
func (s *scenario) count(ctx context.Context, prefix string) int {
	// The request may go to a frozen member.
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	resp, err := s.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return -1
	}
	return int(resp.Count)
}

// timer starts a timer and returns a function that fails the test if more time than limit
// has passed, not counting the time in which this process did not run.
func (s *scenario) timer() func(what string, limit time.Duration) {
	began := now()
	return func(what string, limit time.Duration) {
		s.t.Helper()
		took, stalled := now().since(began), s.meter.since(began)
		s.t.Logf("%s after %v; the limit is %v plus %v in which this process did not run", what, roundMillis(took), limit, roundMillis(stalled))
		if took > limit+stalled {
			s.t.Errorf("too late: %s", what)
		}
	}
}

func roundMillis(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// leader waits until the cluster has a leader and returns its number.
func (s *scenario) leader() (member int) {
	s.t.Helper()
	s.eventually("there is a leader", func(ctx context.Context) bool {
		for member = range s.members {
			asked, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
			status, err := s.etcd.Status(asked, s.cluster.Member(member).Endpoint())
			cancel()
			if err == nil && status.Leader == status.Header.MemberId {
				return true
			}
		}
		return false
	})
	return member
}

// restart restarts members that were killed.
func (s *scenario) restart(members ...int) {
	s.t.Helper()
	ctx, cancel := s.testContext()
	defer cancel()
	for _, member := range members {
		s.check(s.cluster.Member(member).Restart(ctx))
	}
}

func (s *scenario) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// kill kills a client process. What it has in etcd stays until its lease expires.
func (s *scenario) kill(p *process) {
	p.kill()
	s.leftAt = p.killed
}

// end ends everything that the scenario has started. Unless the test has already failed,
// it makes the checks that all tests share.
func (s *scenario) end() {
	defer func() {
		for _, p := range s.clients {
			p.kill()
			if s.t.Failed() && p.stderr.Len() > 0 {
				s.t.Logf("standard error of %s:\n%s", p.name, p.stderr.String())
			}
		}
		if s.observer != nil {
			s.observer.end(s.t)
		}
	}()
	if s.t.Failed() {
		return
	}
	for _, p := range s.clients {
		if p.killed == 0 {
			p.finish()
		}
	}
	s.checkNothingLeft()
	ctx, cancel := s.testContext()
	defer cancel()
	history, err := readHistory(ctx, s.etcd, s.names)
	s.check(err)
	for _, name := range s.names {
		want := history[name][len(history[name])-1]
		s.poll(s.ttl, func(context.Context) bool { // check reports the error
			watched, cached := s.observer.newest(name)
			return watched.Holder == want.Holder && cached.Holder == want.Holder && (s.watchMaySkip || watched.Revision >= want.Revision)
		})
	}
	s.observer.check(s.t, history, !s.watchMaySkip)
	s.checkReports(history)
}

// checkNothingLeft waits until etcd has no key and no lease. The limit is a second, or
// longer if leases have to expire that no client could revoke.
func (s *scenario) checkNothingLeft() {
	limit := time.Second
	if s.leftAt != 0 {
		limit += max(0, s.ttl-now().since(s.leftAt))
	}
	var keys *clientv3.GetResponse
	var leases *clientv3.LeaseLeasesResponse
	var errs error
	began := now()
	if !s.poll(limit+testTimeout, func(ctx context.Context) bool {
		var err, err2 error
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		keys, err = s.etcd.Get(ctx, locker.DefaultPrefix, clientv3.WithPrefix())
		leases, err2 = s.etcd.Leases(ctx)
		errs = errors.Join(err, err2)
		over := now().since(began) > limit+s.meter.since(began)
		return errs == nil && (over || len(keys.Kvs) == 0 && len(leases.Leases) == 0)
	}) {
		s.t.Fatalf("read what is left in etcd: %v", errs)
	}
	s.t.Logf("waited %v for etcd to be empty; the limit is %v", roundMillis(now().since(began)), roundMillis(limit))
	for _, kv := range keys.Kvs {
		s.t.Errorf("left behind: %s (lease %x)", kv.Key, kv.Lease)
	}
	for _, lease := range leases.Leases {
		s.t.Errorf("left behind: lease %x", lease.ID)
	}
}
