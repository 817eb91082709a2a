package locker_test

import (
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func BenchmarkCacheGet(b *testing.B) {
	s := locktest.Setup(b)
	c := s.Client(b)
	locktest.Lock(b, c, "a", "1")
	k := locktest.NewCache(b, c, "")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, ok := k.Get("a"); !ok {
				b.Error("not found")
			}
		}
	})
}

func BenchmarkLockUnlock(b *testing.B) {
	s := locktest.Setup(b)
	c := s.Client(b)
	locktest.Unlock(b, locktest.Lock(b, c, "a", "1")) // opens the session
	b.ReportAllocs()
	for b.Loop() {
		l, err := c.Lock(b.Context(), "a", "1")
		if err == nil {
			err = l.Unlock(b.Context())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHandOver measures the time from one hold to the next while two clients
// always want the same name.
func BenchmarkHandOver(b *testing.B) {
	s := locktest.Setup(b)
	benchmarkHandOver(b, s.Client(b), s.Client(b))
}

// BenchmarkHandOverInside is the same for two goroutines of one client.
func BenchmarkHandOverInside(b *testing.B) {
	c := locktest.Setup(b).Client(b)
	benchmarkHandOver(b, c, c)
}

// BenchmarkLocalHandover is the same for two goroutines that may share a hold.
func BenchmarkLocalHandover(b *testing.B) {
	c := locktest.Setup(b).Client(b, locker.WithLocalHandover(1000))
	benchmarkHandOver(b, c, c)
}

func benchmarkHandOver(b *testing.B, clients ...*locker.Client) {
	holds := make(chan struct{})
	for _, c := range clients {
		locktest.Unlock(b, locktest.Lock(b, c, "a", "1")) // opens the session
	}
	for _, c := range clients {
		go func() {
			for {
				l, err := c.Lock(b.Context(), "a", "1")
				if err != nil {
					return // the benchmark is over
				}
				select {
				case holds <- struct{}{}:
				case <-b.Context().Done():
				}
				_ = l.Unlock(b.Context())
			}
		}()
	}
	b.ReportAllocs()
	for b.Loop() {
		<-holds
	}
}
