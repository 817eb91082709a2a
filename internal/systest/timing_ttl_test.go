package systest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestRenewal_ATTLThatEtcdChangesCountsFromTheNextOn(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{3 * time.Second, 6 * time.Second, 60 * time.Second} {
		t.Run(fmt.Sprint(ttl), func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				sim.Always(fakeetcd.KeepAlive, fakeetcd.Fate{TTL: int64(ttl / time.Second)})
				l := locktest.Lock(sim, sim.Client(locker.WithTTL(simulatedTTL)), "a", "")
				for i := range time.Duration(3) {
					sent := interval + i*ttl/3
					sim.At(sent)
					if got := sim.Deadline(l); got != sent+ttl-ttl/10 {
						t.Errorf("after %v the deadline is %v", sent, got)
					}
				}
				if sent := sim.Sent(fakeetcd.KeepAlive); !slices.Equal(sent, []time.Duration{interval, interval + ttl/3, interval + 2*ttl/3}) {
					t.Errorf("renewed at %v", sent)
				}
				ended := sim.Ending(l)
				sim.Always(fakeetcd.KeepAlive, fakeetcd.Fate{Lost: true})
				if at, last := <-ended, interval+2*ttl/3; at != last+ttl-ttl/10 {
					t.Errorf("without an answer the hold ended after %v", at)
				}
			})
		})
	}
}

func TestCache_OfACurrentCopyIsYoungWhateverTheTTL(t *testing.T) {
	t.Parallel()
	const bound = 3 * time.Second
	for _, ttl := range []time.Duration{time.Second, 10 * time.Second, time.Minute, time.Hour} {
		t.Run(fmt.Sprint(ttl), func(t *testing.T) {
			t.Parallel()
			locktest.Simulate(t, func(sim locktest.Simulation) {
				k, err := sim.Client(locker.WithTTL(ttl)).NewCache(sim.Context(), "")
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
				oldest := time.Duration(0)
				for range 600 {
					time.Sleep(100 * time.Millisecond)
					oldest = max(oldest, k.Age())
				}
				if oldest > bound {
					t.Errorf("a copy that was current had an age of %v", oldest)
				}
				sim.Server.Decide(func(fakeetcd.Call) fakeetcd.Fate { return fakeetcd.Fate{Lost: true} })
				time.Sleep(time.Minute)
				if age := k.Age(); age < time.Minute-bound {
					t.Errorf("a minute after the last answer the age is %v", age)
				}
			})
		})
	}
}
