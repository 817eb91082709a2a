package locker_test

import (
	"testing"

	"github.com/jagregory/locker/v2"
)

func BenchmarkCacheGet(b *testing.B) {
	s := setup(b)
	c := s.Client(b)
	lock(b, c, "a", "1")
	k := newCache(b, c, "")
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
	s := setup(b)
	c := s.Client(b)
	unlock(b, lock(b, c, "a", "1")) // opens the session
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

// BenchmarkHandOver measures from one hold to the next while two clients want the
// same name all the time.
func BenchmarkHandOver(b *testing.B) {
	s := setup(b)
	handOver(b, s.Client(b), s.Client(b))
}

// BenchmarkHandOverInside is the same between two goroutines of one client.
func BenchmarkHandOverInside(b *testing.B) {
	c := setup(b).Client(b)
	handOver(b, c, c)
}

// BenchmarkLocalHandover is the same when they may share a hold.
func BenchmarkLocalHandover(b *testing.B) {
	c := setup(b).Client(b, locker.WithLocalHandover(1000))
	handOver(b, c, c)
}

func handOver(b *testing.B, clients ...*locker.Client) {
	holds := make(chan struct{})
	for _, c := range clients {
		unlock(b, lock(b, c, "a", "1")) // opens the session
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
