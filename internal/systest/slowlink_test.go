package systest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of slow links and large answers: a Client manages whatever a bare client of etcd does,
// and never has more than two attempts at a request under way.

// narrow is the bandwidth of the links, in bytes a second.
const narrow = 300 << 10

// traffic counts, for each request, how many attempts are under way and how many were made.
type traffic struct {
	mu       sync.Mutex // guards what follows
	underWay map[string]int
	most     int
	made     map[string]int
}

func (w *traffic) intercept(_ context.Context, method string, req any, call func() error) error {
	key := method + fmt.Sprint(req)
	w.mu.Lock()
	if w.underWay == nil {
		w.underWay, w.made = make(map[string]int), make(map[string]int)
	}
	w.underWay[key]++
	w.made[key]++
	w.most = max(w.most, w.underWay[key])
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.underWay[key]--
	}()
	return call()
}

// atMostTwo fails the test if more than two attempts at a request were ever under way.
func (w *traffic) atMostTwo(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.most > 2 {
		t.Errorf("%d attempts at one request were under way", w.most)
	}
}

// repeated returns how many requests with part in them were made more than once.
func (w *traffic) repeated(part string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for request, made := range w.made {
		if made > 1 && strings.Contains(request, part) {
			n++
		}
	}
	return n
}

// throttled returns a bare client and a Client, each over a narrow link of its own.
func throttled(t *testing.T, b locktest.Bundle) (*clientv3.Client, *locker.Client, *traffic) {
	t.Helper()
	var seen traffic
	links := [2]*clientv3.Config{}
	for i := range links {
		proxy := b.Server.Proxy(t)
		config := proxy.ClientConfig()
		if i == 1 {
			config.DialOptions = append(config.DialOptions, embedtest.Intercept(seen.intercept).DialOption())
		}
		links[i] = &config
		proxy.Throttle(narrow)
	}
	return locktest.Connect(t, *links[0]), locktest.NewClient(t, locktest.Connect(t, *links[1])), &seen
}

// putNames puts an entry for each of n names into etcd.
func putNames(t *testing.T, b locktest.Bundle, n int, value string) {
	t.Helper()
	ops := make([]clientv3.Op, 0, 100)
	for i := range n {
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%sname-%07d/1", locker.DefaultPrefix, i), value))
		if len(ops) == cap(ops) || i == n-1 || len(ops)*len(value) > 1<<20 {
			if _, err := b.Etcd.Txn(locktest.Within(t)).Then(ops...).Commit(); err != nil {
				t.Fatal(err)
			}
			ops = ops[:0]
		}
	}
}

// wantAsQuick checks how long Locker took for what took a bare client that long. It allows for
// the race detector and a busy machine.
func wantAsQuick(t *testing.T, what string, took time.Duration, bareWhat string, bare time.Duration) {
	t.Helper()
	t.Logf("%s took %v, %s %v", what, took, bareWhat, bare)
	if took > bare*3/2+locktest.Prompt {
		t.Errorf("%s took too long", what)
	}
}

func TestLock_OfALargeValueSucceedsOverASlowLink(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	bare, c, seen := throttled(t, b)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	value := strings.Repeat("v", 1<<20)

	began := time.Now()
	if _, err := bare.Put(locktest.Within(t), "bare", value); err != nil {
		t.Fatal(err)
	}
	put := time.Since(began)
	began = time.Now()
	l := locktest.Lock(t, c, "a", value)
	wantAsQuick(t, "Lock", time.Since(began), "a put", put)

	began = time.Now()
	if _, err := bare.Get(locktest.Within(t), "bare"); err != nil {
		t.Fatal(err)
	}
	get := time.Since(began)
	began = time.Now()
	holder, err := c.Get(locktest.Within(t), "a")
	wantAsQuick(t, "Get", time.Since(began), "a bare one", get)
	if err != nil || holder.Value != value {
		t.Errorf("Get returns %d bytes, %v", len(holder.Value), err)
	}
	if err := l.Err(); err != nil {
		t.Error(err)
	}
	locktest.Unlock(t, l)
	seen.atMostTwo(t)
	if n := seen.repeated("vvvv"); n > 0 {
		t.Errorf("%d large requests were made more than once", n)
	}
}

func TestList_OfManyNamesSucceedsOverASlowLink(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	const names = 10_000
	putNames(t, b, names, "10.0.0.1:8080")
	bare, c, seen := throttled(t, b)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))

	began := time.Now()
	if _, err := bare.Get(locktest.Within(t), locker.DefaultPrefix, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	get := time.Since(began)
	began = time.Now()
	holders, err := c.List(locktest.Within(t), "name-")
	wantAsQuick(t, "List", time.Since(began), "a bare Get", get)
	if err != nil || len(holders) != names {
		t.Errorf("%d names, %v", len(holders), err)
	}
	seen.atMostTwo(t)
	cache, err := c.NewCache(locktest.Within(t), "name-")
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	if n := len(cache.List()); n != names {
		t.Errorf("the cache has %d names", n)
	}
}

func TestLock_ManyAtOnceSucceedOverASlowLink(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	bare, c, seen := throttled(t, b)
	locktest.Unlock(t, locktest.Lock(t, c, "warm", ""))
	const locks = 120
	value := strings.Repeat("v", 8<<10)
	all := func(do func(i int) error) time.Duration {
		began := time.Now()
		var wg sync.WaitGroup
		for i := range locks {
			wg.Go(func() {
				if err := do(i); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	ctx := locktest.Within(t)
	puts := all(func(i int) error { _, err := bare.Put(ctx, fmt.Sprint("bare", i), value); return err })
	took := all(func(i int) error { _, err := c.Lock(ctx, fmt.Sprint("name", i), value); return err })
	wantAsQuick(t, "120 locks", took, "the puts", puts)
	seen.atMostTwo(t)
}

func TestList_ReadsLargeValuesInSmallPages(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	const names = 100
	value := strings.Repeat("v", 100<<10)
	putNames(t, b, names, value)
	var limit atomic.Int64 // the limit of the first page that arrived
	c := locktest.NewClient(t, b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		err := call()
		if read, ok := req.(*pb.RangeRequest); ok && err == nil && len(read.RangeEnd) > 0 {
			limit.CompareAndSwap(0, read.Limit)
		}
		return err
	}))
	holders, err := c.List(locktest.Within(t), "")
	if err != nil || len(holders) != names || holders[names-1].Value != value {
		t.Fatalf("%d names, %v", len(holders), err)
	}
	if n := limit.Load(); n > 8 {
		t.Errorf("the first page was to have up to %d values of 100 KiB", n)
	}
}

func TestList_StartsOverWhenItsRevisionIsCompacted(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	const names = 2_000
	putNames(t, b, names, "v")
	for name, often := range map[string]int32{"twice": 2, "always": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var compacted atomic.Int32
			c := locktest.NewClient(t, b.Server.ClientWith(t, func(ctx context.Context, _ string, req any, call func() error) error {
				if read, ok := req.(*pb.RangeRequest); ok && read.Revision > 0 && compacted.Add(1) <= often {
					return status.Error(codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted")
				}
				return call()
			}))
			holders, err := c.List(locktest.Within(t), "name-")
			if err != nil || len(holders) != names || compacted.Load() == 0 {
				t.Errorf("%d names after %d compactions, %v", len(holders), compacted.Load(), err)
			}
		})
	}
}

func TestCache_IsFilledWithManyNamesThoughTheTTLIsShort(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	const names = 20_000
	putNames(t, b, names, "v")
	// Each read of a range takes time in proportion to its size, as on a busy machine.
	slow := func(ctx context.Context, _ string, req any, call func() error) error {
		read, ok := req.(*pb.RangeRequest)
		if !ok || len(read.RangeEnd) == 0 {
			return call()
		}
		keys := read.Limit
		if keys == 0 {
			keys = names
		}
		select {
		case <-time.After(time.Duration(keys) * time.Millisecond / 5):
			return call()
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	var seen traffic
	config := b.Server.ClientConfig()
	for _, f := range []embedtest.Intercept{seen.intercept, slow} {
		config.DialOptions = append(config.DialOptions, f.DialOption())
	}
	c := locktest.NewClient(t, locktest.Connect(t, config), locker.WithTTL(time.Second))
	cache, err := c.NewCache(locktest.Within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	if n := len(cache.List()); n != names {
		t.Errorf("the cache has %d names", n)
	}
	seen.atMostTwo(t)
}
