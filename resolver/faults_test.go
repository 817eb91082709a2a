package resolver_test

import (
	"errors"
	"fmt"
	"net/url"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	gresolver "google.golang.org/grpc/resolver"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
	"github.com/jagregory/locker/v2/resolver"
)

func TestResolver_MovesTrafficWhenTheHolderIsKilled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first, second := serve(t), serve(t)
	lock := locktest.Lock(t, b.Client(t), "role", first.address)
	waiting := locktest.LockAsync(locktest.Within(t), b.Client(t), "role", second.address)
	b.Queued(t, "role", 2)
	conn := dial(t, resolver.NewBuilder(b.Client(t)), "locker:///role")
	reaches(t, conn, first)
	first.Stop()
	b.Server.ExpireLease(t, locktest.LeaseOf(lock))
	locktest.LockOf(t, waiting)
	reaches(t, conn, second)
}

func TestResolver_MovesTrafficWhenTheHolderIsCutOff(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	first, second := serve(t), serve(t)
	lock := locktest.Lock(t, locktest.NewClient(t, proxy.Client(t)), "role", first.address)
	waiting := locktest.LockAsync(locktest.Within(t), b.Client(t), "role", second.address)
	b.Queued(t, "role", 2)
	conn := dial(t, resolver.NewBuilder(b.Client(t)), "locker:///role")
	reaches(t, conn, first)
	proxy.Cut()
	b.Server.ExpireLease(t, locktest.LeaseOf(lock)) // now, rather than after a TTL
	locktest.LockOf(t, waiting)
	reaches(t, conn, second) // although first still serves
}

func TestResolver_FollowsWhatHappenedWhileItWasCutOff(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy, c := b.Server.Proxy(t), b.Client(t)
	first, second := serve(t), serve(t)
	lock := locktest.Lock(t, c, "role", first.address)
	conn := dial(t, resolver.NewBuilder(locktest.NewClient(t, proxy.Client(t))), "locker:///role")
	reaches(t, conn, first)
	proxy.Cut()
	locktest.Unlock(t, lock)
	locktest.Lock(t, c, "role", second.address)
	for i := range 100 {
		locktest.PutKey(t, b.Etcd, "something else", fmt.Sprint(i))
	}
	b.Server.Compact(t)
	stays(t, conn, first)
	proxy.Heal()
	reaches(t, conn, second)
}

func TestResolver_GoesOnWhenItsMemberIsFrozen(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	proxy, c := b.Server.Proxy(t), b.Client(t)
	present := serve(t)
	lock := locktest.Lock(t, c, "role", present.address)
	conn := dial(t, resolver.NewBuilder(locktest.NewClient(t, proxy.Client(t))), "locker:///role")
	reaches(t, conn, present)
	for member := range 3 { // one of them is the one it is connected to
		proxy.Freeze(member)
		next := serve(t)
		waiting := locktest.LockAsync(locktest.Within(t), c, "role", next.address)
		present.leave(t, lock)
		present, lock = next, locktest.LockOf(t, waiting)
		reaches(t, conn, present)
		proxy.Thaw(member)
	}
}

func TestResolver_KeepsItsAddressesWhileEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	for name, fault := range map[string]func(*embedtest.Proxy){
		"cut":    func(p *embedtest.Proxy) { p.Cut() },
		"frozen": func(p *embedtest.Proxy) { p.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, first, second := b.Server.Proxy(t), serve(t), serve(t)
			r := record(locktest.NewClient(t, proxy.Client(t)))
			lock := locktest.Lock(t, c, name, first.address)
			conn := dial(t, r, "locker:///"+name)
			reaches(t, conn, first)
			n := r.count()
			fault(proxy)
			locktest.Unlock(t, lock)
			locktest.Lock(t, c, name, second.address)
			_, n = r.next(t, n, "the outage is reported", func(got report) bool { return contains(got.err, "etcd has not answered") })
			stays(t, conn, first)
			proxy.Heal()
			reaches(t, conn, second)
			r.next(t, n, "the addresses are given", func(got report) bool { return len(got.addresses) == 1 && got.addresses[0] == second.address })
		})
	}
}

func TestResolver_ReportsThatEtcdIsUnreachableFromTheStart(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy, s := b.Server.Proxy(t), serve(t)
	proxy.Cut()
	locktest.Lock(t, b.Client(t), "role", s.address)
	conn := dial(t, resolver.NewBuilder(locktest.NewClient(t, proxy.Client(t))), "locker:///role")
	fails(t, conn, "etcd has not answered")
	proxy.Heal()
	reaches(t, conn, s)
}

func TestResolver_GoesOnWhenEtcdNoLongerRefuses(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	b.AddUser(t, "reader")
	config := b.Server.ClientConfig()
	config.Username, config.Password = "reader", "reader"
	c, r := b.Client(t), record(locktest.NewClient(t, locktest.Connect(t, config)))
	first, second := serve(t), serve(t)
	lock := locktest.Lock(t, c, "role", first.address)
	conn := dial(t, r, "locker:///role")
	fails(t, conn, "permission denied")
	b.Permit(t, "reader", clientv3.PermissionType(clientv3.PermRead), locker.DefaultPrefix)
	reaches(t, conn, first)

	n := r.count()
	b.Forbid(t, "reader", locker.DefaultPrefix)
	r.next(t, n, "the refusal is reported", func(got report) bool { return contains(got.err, "permission denied") })
	locktest.Unlock(t, lock)
	locktest.Lock(t, c, "role", second.address)
	stays(t, conn, first)
	b.Permit(t, "reader", clientv3.PermissionType(clientv3.PermRead), locker.DefaultPrefix)
	reaches(t, conn, second)
}

func TestResolver_EndsWithItsClient(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	s := serve(t)
	locktest.Lock(t, b.Client(t), "role", s.address)
	for name, want := range map[string]error{"client": locker.ErrClosed, "etcd": locker.ErrEtcdClosed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			etcd := b.Server.Client(t)
			c := locktest.NewClient(t, etcd)
			r := record(c)
			conn := dial(t, r, "locker:///role")
			reaches(t, conn, s)
			n := r.count()
			if want == locker.ErrEtcdClosed {
				_ = etcd.Close()
			} else if err := c.Close(); err != nil {
				t.Error(err)
			}
			r.next(t, n, "the reason is reported", func(got report) bool { return errors.Is(got.err, want) })
			fails(t, conn, want.Error())
			fails(t, dial(t, r, "locker:///role"), want.Error()) // at once
		})
	}
}

func TestResolver_CloseReturnsThoughEtcdDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy, s := b.Server.Proxy(t), serve(t)
	c := locktest.NewClient(t, proxy.Client(t))
	locktest.Lock(t, b.Client(t), "role", s.address)
	r := record(c)
	following := dial(t, r, "locker:///role")
	reaches(t, following, s)
	proxy.Freeze()
	opening := dial(t, r, "locker:///role")
	opening.Connect()
	if err := locktest.Receive(t, locktest.Async(opening.Close)); err != nil {
		t.Error(err)
	}
	if err := locktest.Receive(t, locktest.Async(following.Close)); err != nil {
		t.Error(err)
	}
	if n := r.closed.Load(); n != 2 {
		t.Errorf("%d of 2 resolvers were closed", n)
	}
	proxy.Heal()
}

// slowConn is a connection that takes its time to take addresses in.
type slowConn struct {
	gresolver.ClientConn
	arrived, proceed chan struct{}
}

func (c slowConn) UpdateState(gresolver.State) error {
	close(c.arrived)
	<-c.proceed
	return nil
}

func TestResolver_CloseWaitsForItsGoroutine(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	locktest.Lock(t, c, "role", "10.0.0.1:80")
	conn := slowConn{arrived: make(chan struct{}), proceed: make(chan struct{})}
	target := gresolver.Target{URL: url.URL{Scheme: resolver.Scheme, Path: "/role"}}
	r, err := resolver.NewBuilder(c).Build(target, conn, gresolver.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	locktest.Receive(t, conn.arrived)
	closed := locktest.Async(func() error { r.Close(); return nil })
	select {
	case <-closed:
		t.Error("Close has returned, but its goroutine has not")
	case <-time.After(50 * time.Millisecond): // long enough for a Close that does not wait
	}
	close(conn.proceed)
	locktest.Receive(t, closed)
}
