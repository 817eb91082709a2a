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

// scene is what a test takes place on. When the test ends, every client process ends in good order, and
// then it is looked at what is left, what was reported and what was observed.
type scene struct {
	t        *testing.T
	ttl      time.Duration
	cluster  *etcdproc.Cluster
	members  int
	etcd     *clientv3.Client // of the test itself
	meter    *meter
	names    []string
	observer *observer
	resource resource
	clients  []*process

	crowded bool    // states follow each other so fast that Watch may skip some
	left    instant // when something was left that only the end of its lease removes
}

// resource is one outside etcd that is guarded by tokens.
type resource map[string]int64

// write reports whether the resource accepts a write: after a larger token it refuses a smaller one.
func (r resource) write(name string, token int64) bool {
	if token < r[name] {
		return false
	}
	r[name] = token
	return true
}

// start starts a cluster.
func start(t *testing.T, members int, ttl time.Duration) *scene {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), building)
	defer cancel()
	program, err := etcdproc.Build(ctx, version, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, ttl: ttl, members: members, resource: make(resource)}
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

// within returns a context for something that has no bound of its own.
func (s *scene) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}

// endpoints returns the addresses of these members, or of all.
func (s *scene) endpoints(members ...int) (endpoints []string) {
	if len(members) == 0 {
		return s.cluster.Endpoints()
	}
	for _, member := range members {
		endpoints = append(endpoints, s.cluster.Member(member).Endpoint())
	}
	return endpoints
}

// observe starts the observer of some names, with a connection to these members, or to all.
func (s *scene) observe(names []string, members ...int) {
	s.t.Helper()
	s.names = names
	s.observer = newObserver(s.t, s.ttl, names, s.endpoints(members...))
}

// client starts a client process with a connection to these members, or to all.
func (s *scene) client(name string, members ...int) *process {
	s.t.Helper()
	return s.clientWith(s.ttl, name, members...)
}

// clientWith starts one with another TTL.
func (s *scene) clientWith(ttl time.Duration, name string, members ...int) *process {
	s.t.Helper()
	p := newProcess(s.t, command{Process: name, Endpoints: s.endpoints(members...), TTL: ttl})
	s.clients = append(s.clients, p)
	return p
}

// locks has a client lock a name and the observer see it.
func (s *scene) locks(p *process, name string) report {
	s.t.Helper()
	r := p.do("lock", name)
	s.sees(r)
	return r
}

// queues has a client want a name, and returns when it is the n-th in the queue.
func (s *scene) queues(p *process, name string, n int) (id int) {
	s.t.Helper()
	id = p.send(command{Verb: "lock", Name: name, Within: 2 * patience})
	s.await("the queue has the right length", func(ctx context.Context) bool { return s.count(ctx, queue(name)) == n })
	return id
}

// holds waits until a client has got what it wanted and the observer has seen it.
func (s *scene) holds(p *process, id int) report {
	s.t.Helper()
	r := p.answer(id)
	p.want(r, "")
	s.sees(r)
	return r
}

// sees waits until Watch and Cache show a hold.
func (s *scene) sees(hold report) {
	s.t.Helper()
	s.await("the observer has seen the hold", func(context.Context) bool {
		watched, cached := s.observer.newest(hold.Name)
		return watched.Token == hold.Token && cached.Token == hold.Token
	})
}

// keeps fails the test if the client has lost the hold, and waits for another renewal: so the hold is
// one that goes on.
func (s *scene) keeps(p *process, hold report) {
	s.t.Helper()
	s.renewed(p, hold.Name)
	if r := p.do("err", hold.Name); r.Token != hold.Token {
		s.t.Fatalf("%s holds token %d, it was %d", p.name, r.Token, hold.Token)
	}
	if p.has(func(r report) bool { return r.ID == hold.ID && r.Verb == "ended" }) {
		s.t.Fatalf("%s has lost its hold", p.name)
	}
}

// renewed waits until the session of a hold has been renewed once more, so that its deadline is nearly
// as far away as it can be.
func (s *scene) renewed(p *process, name string) {
	s.t.Helper()
	before := p.do("deadline", name)
	s.await("the hold is renewed", func(context.Context) bool { return p.do("deadline", name).Until > before.Until.add(tick) })
}

// await calls a condition until it is true.
func (s *scene) await(what string, condition func(context.Context) bool) {
	s.t.Helper()
	if !s.comes(patience, condition) {
		s.t.Fatalf("it never came true: %s", what)
	}
}

// comes calls a condition until it is true, and reports false if it has not been for that long.
func (s *scene) comes(limit time.Duration, condition func(context.Context) bool) bool {
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

func queue(name string) string { return key.NewSpace(locker.DefaultPrefix).Queue(name) }

// count returns how many keys there are below a prefix, -1 if that cannot be known now.
func (s *scene) count(ctx context.Context, prefix string) int {
	// One request may go to a member that is frozen.
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	resp, err := s.etcd.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return -1
	}
	return int(resp.Count)
}

// timer returns a function that fails the test if more time has passed since than allowed, for which
// the time counts that this process was not run.
func (s *scene) timer() func(what string, limit time.Duration) {
	began := now()
	return func(what string, limit time.Duration) {
		s.t.Helper()
		took, kept := now().since(began), s.meter.since(began)
		s.t.Logf("%s after %v, allowed are %v (and %v for which this process was not run)", what, round(took), limit, round(kept))
		if took > limit+kept {
			s.t.Errorf("%s too late", what)
		}
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// leader finds the leader.
func (s *scene) leader() (member int) {
	s.t.Helper()
	s.await("there is a leader", func(ctx context.Context) bool {
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

// restart starts members that were killed.
func (s *scene) restart(members ...int) {
	s.t.Helper()
	ctx, cancel := s.within()
	defer cancel()
	for _, member := range members {
		s.check(s.cluster.Member(member).Restart(ctx))
	}
}

func (s *scene) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// kill kills a client process: what it had in etcd is left to its lease.
func (s *scene) kill(p *process) {
	p.kill()
	s.left = p.killed
}

// end ends what start and its likes have started. Unless the test has failed before, it makes the checks
// that are the same for all.
func (s *scene) end() {
	defer func() {
		for _, p := range s.clients {
			p.kill()
			if s.t.Failed() && p.words.Len() > 0 {
				s.t.Logf("%s said:\n%s", p.name, p.words.String())
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
	s.nothingIsLeft()
	ctx, cancel := s.within()
	defer cancel()
	truth, err := readTruth(ctx, s.etcd, s.names)
	s.check(err)
	for _, name := range s.names {
		want := truth[name][len(truth[name])-1]
		s.comes(s.ttl, func(context.Context) bool { // if it does not, check says so
			watched, cached := s.observer.newest(name)
			return watched.Holder == want.Holder && cached.Holder == want.Holder && (s.crowded || watched.Revision >= want.Revision)
		})
	}
	s.observer.check(s.t, truth, !s.crowded)
	s.judge(truth)
}

// nothingIsLeft waits until there is no key and no lease: a moment, or until the leases have run out
// that nobody could revoke.
func (s *scene) nothingIsLeft() {
	limit := time.Second
	if s.left != 0 {
		limit += max(0, s.ttl-now().since(s.left))
	}
	var keys *clientv3.GetResponse
	var leases *clientv3.LeaseLeasesResponse
	var errs error
	began := now()
	if !s.comes(limit+patience, func(ctx context.Context) bool {
		var err, err2 error
		ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		defer cancel()
		keys, err = s.etcd.Get(ctx, locker.DefaultPrefix, clientv3.WithPrefix())
		leases, err2 = s.etcd.Leases(ctx)
		errs = errors.Join(err, err2)
		over := now().since(began) > limit+s.meter.since(began)
		return errs == nil && (over || len(keys.Kvs) == 0 && len(leases.Leases) == 0)
	}) {
		s.t.Fatalf("what is left cannot be known: %v", errs)
	}
	s.t.Logf("looked for what is left for %v, allowed are %v", round(now().since(began)), round(limit))
	for _, kv := range keys.Kvs {
		s.t.Errorf("left behind: %s (lease %x)", kv.Key, kv.Lease)
	}
	for _, lease := range leases.Leases {
		s.t.Errorf("left behind: lease %x", lease.ID)
	}
}
