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
