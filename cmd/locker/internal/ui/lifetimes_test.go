package ui

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestLifetimes_AllRequestsTogetherAskOnlySoMuchAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const requests, each = 5, 20
		var asking, asked atomic.Int64
		answer := make(chan struct{})
		l := newLifetimes(nil)
		l.ask = func(ctx context.Context, _ clientv3.LeaseID) (left, granted time.Duration, err error) {
			asked.Add(1)
			asking.Add(1)
			defer asking.Add(-1)
			select {
			case <-answer:
				return time.Second, time.Minute, nil
			case <-ctx.Done():
				return 0, 0, ctx.Err()
			}
		}
		refresh := func() (wait func()) {
			var all sync.WaitGroup
			for i := range requests {
				leases := make([]clientv3.LeaseID, each)
				for j := range leases {
					leases[j] = clientv3.LeaseID(1 + i*each + j)
				}
				all.Go(func() { l.refresh(t.Context(), leases) })
			}
			synctest.Wait()
			return all.Wait
		}
		began, wait := time.Now(), refresh()
		if n := asking.Load(); n != asksAtOnce {
			t.Errorf("%d questions at once, want %d", n, asksAtOnce)
		}
		if wait(); time.Since(began) != askTimeout {
			t.Errorf("the requests took %v, want %v", time.Since(began), askTimeout)
		}

		// Those that nobody has asked about yet are asked about now.
		unasked := requests*each - asked.Swap(0)
		wait = refresh()
		close(answer)
		if wait(); asked.Load() != unasked {
			t.Errorf("%d questions in the second round, want %d", asked.Load(), unasked)
		}
	})
}
