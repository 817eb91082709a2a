package resolver_test

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	gresolver "google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
	"github.com/jagregory/locker/v2/resolver"
)

// contains reports whether the text of an error contains another.
func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

func TestResolver_LosesNoRequestInHandOvers(t *testing.T) {
	t.Parallel()
	const handOvers, goroutines = 50, 4
	b := locktest.Setup(t)
	holders := []*locker.Client{b.Client(t), b.Client(t)}
	present := serve(t)
	lock := locktest.Lock(t, holders[0], "role", present.address)
	conn := dial(t, resolver.NewBuilder(b.Client(t)), "locker:///role")
	reaches(t, conn, present)

	ctx, stop, sent := locktest.Within(t), make(chan struct{}), make([]int, goroutines)
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			for pace := time.NewTicker(time.Millisecond); ; <-pace.C {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := ask(ctx, conn); err != nil {
					t.Errorf("request %d was lost: %v", sent[i], err)
				}
				sent[i]++
			}
		})
	}
	for i := range handOvers {
		next := serve(t)
		waiting := locktest.LockAsync(ctx, holders[(i+1)%2], "role", next.address)
		b.Queued(t, "role", 2)
		present.leave(t, lock)
		present, lock = next, locktest.LockOf(t, waiting)
		locktest.Eventually(t, "the next holder has the traffic", func() bool { return next.requests.Load() > 0 })
	}
	close(stop)
	wg.Wait()
	t.Logf("%d requests during %d hand-overs", sent[0]+sent[1]+sent[2]+sent[3], handOvers)
}

func TestResolver_AnswersRequestsThatAreUnderWayAtAHandOver(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	first, second := serve(t), serve(t)
	lock := locktest.Lock(t, c, "role", first.address)
	conn := dial(t, resolver.NewBuilder(b.Client(t)), "locker:///role")
	reaches(t, conn, first)
	stream, err := healthpb.NewHealthClient(conn).Watch(locktest.Within(t), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := func(state healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		if got, err := stream.Recv(); err != nil || got.GetStatus() != state {
			t.Fatalf("received %v, %v; want %v", got, err, state)
		}
	}
	want(healthpb.HealthCheckResponse_SERVING)
	waiting := locktest.LockAsync(locktest.Within(t), c, "role", second.address)
	locktest.Unlock(t, lock)
	locktest.LockOf(t, waiting)
	reaches(t, conn, second)
	first.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	want(healthpb.HealthCheckResponse_NOT_SERVING)
}

func TestResolver_SendsTrafficToAllHolders(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]locker.LockOption{"shared": locker.WithShared(), "limit": locker.WithLimit(4)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, r := b.Client(t), record(b.Client(t))
			servers := []*server{serve(t), serve(t), serve(t), serve(t), serve(t)}
			conn := dial(t, r, "locker:///pool", grpc.WithDefaultServiceConfig(roundRobin))
			conn.Connect()
			var locks []*locker.Lock
			for _, s := range servers[:3] {
				locks = append(locks, locktest.Lock(t, c, "pool", s.address, kind))
			}
			shares := func(among ...*server) {
				t.Helper()
				var want []string
				for _, s := range among {
					want = append(want, s.address)
				}
				r.gives(t, want...)
				seen, ctx := make(map[string]bool), locktest.Within(t)
				locktest.Eventually(t, "all holders have traffic", func() bool {
					from, err := ask(ctx, conn)
					if err != nil || !slices.Contains(want, from) {
						t.Errorf("answered by %q, %v; want one of %v", from, err, want)
					}
					seen[from] = true
					return len(seen) == len(want)
				})
			}
			shares(servers[0], servers[1], servers[2])
			locktest.Unlock(t, locks[1])
			shares(servers[0], servers[2])
			locktest.Lock(t, c, "pool", servers[3].address, kind)
			shares(servers[0], servers[2], servers[3])
			locktest.SetValue(t, locks[2], servers[4].address) // not the oldest holder
			shares(servers[0], servers[4], servers[3])
			locktest.Unlock(t, locks[0])
			shares(servers[4], servers[3])
		})
	}
}

func TestResolver_RequestsFailWhileNobodyHoldsTheName(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	for name, config := range map[string]string{"pick_first": "{}", "round_robin": roundRobin} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, second := serve(t), serve(t)
			conn := dial(t, resolver.NewBuilder(c), "locker:///"+name, grpc.WithDefaultServiceConfig(config))
			nobody := fmt.Sprintf("nobody holds %q", name)
			fails(t, conn, nobody)
			lock := locktest.Lock(t, c, name, first.address)
			reaches(t, conn, first)
			locktest.Unlock(t, lock)
			if config == roundRobin {
				nobody = "no children to pick from" // gRPC's own text
			}
			fails(t, conn, nobody) // although first still serves
			ctx := locktest.Within(t)
			waits := locktest.Async(func() error {
				from, err := ask(ctx, conn, grpc.WaitForReady(true))
				if err == nil && from != second.address {
					err = fmt.Errorf("answered by %s", from)
				}
				return err
			})
			locktest.Lock(t, c, name, second.address)
			if err := locktest.Receive(t, waits); err != nil {
				t.Errorf("the request that waited: %v", err)
			}
			reaches(t, conn, second)
		})
	}
}

func TestResolver_KeepsTheLastAddressesForAMoment(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, r, s := b.Client(t), record(b.Client(t)), serve(t)
	lock := locktest.Lock(t, c, "role", s.address)
	reaches(t, dial(t, r, "locker:///role"), s)
	n, unlocked := r.count(), time.Now()
	locktest.Unlock(t, lock)
	withdrawn, n := r.next(t, n, "the address is withdrawn", func(got report) bool { return got.err == nil && len(got.addresses) == 0 })
	if after := withdrawn.at.Sub(unlocked); after < time.Second {
		t.Errorf("the address was withdrawn after %v", after)
	}
	r.next(t, n, "the reason is reported", func(got report) bool { return contains(got.err, `nobody holds "role"`) })
}

func TestResolver_SkipsValuesThatAreNoAddress(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, r := b.Client(t), record(b.Client(t))
	dial(t, r, "locker:///role").Connect()
	lock := locktest.Lock(t, c, "role", "", locker.WithShared())
	n := 0
	for _, bad := range []string{
		"", "10.0.0.1", ":8080", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:-1", "10.0.0.1:http", "10.0.0.1:80 ",
		"http://10.0.0.1:80", "::1:80", "10.0.0.1:80,10.0.0.2:80", strings.Repeat("x", 100_000),
	} {
		locktest.SetValue(t, lock, bad)
		var got report
		text := fmt.Sprintf("the value of %q is not of the form host:port: %.100q", "role", bad)
		got, n = r.next(t, n, text, func(got report) bool { return got.addresses != nil || contains(got.err, text) })
		if got.err == nil || len(got.err.Error()) > 500 {
			t.Errorf("reported %+v", got)
		}
	}
	for _, good := range []string{"10.0.0.1:80", "[::1]:1", "a.example:65535"} {
		locktest.SetValue(t, lock, good)
		r.gives(t, good)
	}
	locktest.SetValue(t, lock, "bad")
	locktest.Lock(t, c, "role", "b.example:80", locker.WithShared())
	r.gives(t, "b.example:80")
	locktest.Lock(t, c, "role", "b.example:80", locker.WithShared())
	locktest.Lock(t, c, "role", "c.example:80", locker.WithShared())
	r.gives(t, "b.example:80", "c.example:80")
}

func TestResolver_ResolvesEveryName(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, r := b.Client(t), record(b.Client(t))
	targets := map[string]string{"plain/slash": "locker:///plain/slash", "short": "locker:/short"}
	for _, name := range []string{"a", "a/b", "/a", "a//b", "100%", "a%2Fb", "what?", "#1", "ü ñ", "[", ":", "..", strings.Repeat("x", locker.MaxNameLength)} {
		targets[name] = "locker:///" + url.PathEscape(name)
	}
	number := 0
	for name, target := range targets {
		number++
		value := fmt.Sprintf("host%d:80", number)
		locktest.Lock(t, c, name, value)
		conn := dial(t, r, target)
		conn.Connect()
		r.gives(t, value)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestResolver_IgnoresNamesThatOnlyBeginLikeIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, r := b.Client(t), record(b.Client(t))
	locktest.Lock(t, c, "rol", "wrong1:80")
	locktest.Lock(t, c, "role/1", "wrong2:80")
	dial(t, r, "locker:///role").Connect()
	r.next(t, 0, "nobody holds it", func(got report) bool { return contains(got.err, `nobody holds "role"`) })
	locktest.Lock(t, c, "role2", "wrong3:80")
	locktest.Lock(t, c, "role", "right:80")
	locktest.Lock(t, c, "role3", "wrong4:80")
	lock := locktest.Lock(t, c, "role4", "wrong5:80")
	locktest.Unlock(t, lock)
	r.gives(t, "right:80")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, got := range r.reports {
		if got.err == nil && !slices.Equal(got.addresses, []string{"right:80"}) {
			t.Errorf("reported %+v", got)
		}
	}
}

func TestBuilder_RefusesTargetsThatAreNoName(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	for target, argument := range map[string]string{
		"locker:///":           "name",
		"locker:":              "name",
		"locker:///%00":        "name",
		"locker:///%ff":        "name",
		"locker:///a%0Ab":      "name",
		"locker:name":          "target",
		"locker://name":        "target",
		"locker://host/name":   "target",
		"locker://me@/name":    "target",
		"locker:///name?query": "target",
		"locker:///name?":      "target",
		"locker:///name#1":     "target",
		"locker:///" + strings.Repeat("x", locker.MaxNameLength+1): "name",
	} {
		parsed, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		r, err := resolver.NewBuilder(c).Build(gresolver.Target{URL: *parsed}, nil, gresolver.BuildOptions{})
		var invalid *locker.InvalidError
		if r != nil || !errors.Is(err, locker.ErrInvalid) || !errors.As(err, &invalid) || invalid.Argument != argument {
			t.Errorf("%.50s: %v, %v; want an invalid %s", target, r, err, argument)
		}
		if _, err := ask(locktest.Within(t), dial(t, resolver.NewBuilder(c), target)); status.Code(err) != codes.Unavailable || !contains(err, "invalid "+argument) {
			t.Errorf("%.50s: the request failed with %v", target, err)
		}
	}
	target := gresolver.Target{URL: url.URL{Scheme: resolver.Scheme, Path: "/name"}}
	if _, err := resolver.NewBuilder(nil).Build(target, nil, gresolver.BuildOptions{}); !errors.Is(err, locker.ErrInvalid) {
		t.Errorf("without a client: %v", err)
	}
}

func TestResolver_EndsWhileTheConnectionIsIdle(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, r, s := b.Client(t), record(b.Client(t)), serve(t)
	locktest.Lock(t, c, "role", s.address)
	conn := dial(t, r, "locker:///role", grpc.WithIdleTimeout(time.Second))
	for n := range int64(2) {
		if from, err := ask(locktest.Within(t), conn, grpc.WaitForReady(true)); err != nil || from != s.address {
			t.Fatalf("answered by %q, %v", from, err)
		}
		locktest.Eventually(t, "it is idle, and the watch has ended", func() bool {
			return conn.GetState() == connectivity.Idle && r.closed.Load() == n+1
		})
	}
}
