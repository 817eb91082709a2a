//go:build unix

package systest

import (
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// BenchmarkIdle measures what waiting and watching cost while nothing happens: the share of
// a core that all clients and their etcd use together. Run it with -benchtime 1x.
func BenchmarkIdle(b *testing.B) {
	for _, load := range []struct {
		clients, waiters, caches int // waiters and caches of each client
		ttl                      time.Duration
	}{
		{1, 5_000, 0, time.Second},
		{1, 5_000, 1, time.Second},
		{100, 1, 0, locker.DefaultTTL},
		{100, 1, 1, locker.DefaultTTL},
	} {
		b.Run(fmt.Sprintf("clients=%d/waiters=%d/caches=%d/ttl=%v", load.clients, load.waiters, load.caches, load.ttl), func(b *testing.B) {
			s := locktest.Setup(b)
			holder := s.Client(b, locker.WithTTL(time.Minute))
			var holds sync.WaitGroup
			for i := range load.waiters {
				holds.Go(func() { locktest.Lock(b, holder, strconv.Itoa(i), "") })
			}
			holds.Wait()
			waiting := b.Context()
			for range load.clients {
				c := s.Client(b, locker.WithTTL(load.ttl))
				for range load.caches {
					locktest.NewCache(b, c, "")
				}
				// The renewal of their leases is not what is measured.
				sessions := make([]*locker.Session, (load.waiters+999)/1000)
				for i := range sessions {
					sessions[i] = locktest.NewSession(b, c, locker.WithSessionTTL(time.Minute))
				}
				for i := range load.waiters {
					own := locker.WithSession(sessions[i/1000])
					go func() { _, _ = c.Lock(waiting, strconv.Itoa(i), "", own) }() // ended with the client
				}
			}
			locktest.Eventually(b, "all are in the queues", func() bool {
				resp, err := s.Etcd.Get(b.Context(), "locker/", clientv3.WithPrefix(), clientv3.WithCountOnly())
				if err != nil {
					b.Fatal(err)
				}
				return resp.Count >= int64(load.waiters*(load.clients+1))
			})
			time.Sleep(2 * time.Second) // until checks and renewals are no longer in step with the start
			const window = 10 * time.Second
			before := processorTime(b)
			for b.Loop() {
				time.Sleep(window)
			}
			b.ReportMetric(100*float64(processorTime(b)-before)/float64(b.Elapsed()), "%core")
		})
	}
}

// processorTime returns how long processors have worked for this process.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
