package interop

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// shared are the clusters for tests that do not disturb each other; each is started by the first.
var shared = make(map[place]func() (*cluster, error))

// started are those that have been.
var started struct {
	mu       sync.Mutex // guards clusters
	clusters []*cluster
}

func share(r release, s setup) {
	shared[place{r.version, s.name}] = sync.OnceValues(func() (*cluster, error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := start(ctx, r, s)
		if err == nil {
			started.mu.Lock()
			defer started.mu.Unlock()
			started.clusters = append(started.clusters, c)
		}
		return c, err
	})
}

// closeShared ends the shared clusters; it is an error if the tests have left anything in one.
func closeShared() error {
	var errs []error
	for _, c := range started.clusters {
		if err := c.empty(); err != nil {
			errs = append(errs, fmt.Errorf("%s, %s: %w", c.version, c.name, err))
		}
		c.close()
	}
	return errors.Join(errs...)
}

// empty waits until the cluster has no key below locker/ and no lease.
func (c *cluster) empty() error {
	etcd, err := clientv3.New(c.config(root))
	if err != nil {
		return err
	}
	defer etcd.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		leases, err := leasesLeft(ctx, etcd)
		if err != nil {
			return err
		}
		keys, err := etcd.Get(ctx, "locker/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return err
		}
		if len(leases)+len(keys.Kvs) == 0 {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the tests have left the leases %v and the keys %v", leases, keys.Kvs)
		}
	}
}

// leasesLeft returns the leases there are, without those of "etcdctl elect -l", which does not revoke its
// own. It lasts a minute, which no other here does.
func leasesLeft(ctx context.Context, etcd *clientv3.Client) (left []clientv3.LeaseID, err error) {
	all, err := etcd.Leases(ctx)
	if err != nil {
		return nil, err
	}
	for _, lease := range all.Leases {
		resp, err := etcd.TimeToLive(ctx, lease.ID)
		if err != nil {
			return nil, err
		}
		if resp.TTL > 0 && resp.GrantedTTL != 60 {
			left = append(left, lease.ID)
		}
	}
	return left, nil
}

// everywhere runs a test on each release in each set-up, on clusters that it shares with others.
func everywhere(t *testing.T, test func(t *testing.T, b bundle)) {
	t.Parallel()
	each(t, setups, func(t *testing.T, r release, s setup) {
		c, err := shared[place{r.version, s.name}]()
		if err != nil {
			t.Fatal(err)
		}
		test(t, newBundle(t, c))
	})
}

// alone runs a test on each release in the set-ups given, each on a cluster of its own.
func alone(t *testing.T, test func(t *testing.T, b bundle), in ...setup) {
	t.Parallel()
	each(t, in, func(t *testing.T, r release, s setup) {
		c, err := start(within(t), r, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.empty(); err != nil {
				t.Error(err)
			}
			c.close()
		})
		test(t, newBundle(t, c))
	})
}

func each(t *testing.T, in []setup, test func(t *testing.T, r release, s setup)) {
	for _, r := range releases {
		for _, s := range in {
			if s.on != nil && !s.on(r) {
				continue
			}
			t.Run(r.version+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				table.count(t, place{r.version, s.name})
				test(t, r, s)
			})
		}
	}
}
