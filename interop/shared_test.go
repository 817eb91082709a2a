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

// shared holds the clusters for tests that do not disturb each other. A cluster is
// started by the first test that needs it.
var shared = make(map[environment]func() (*cluster, error))

// started holds the shared clusters that were started.
var started struct {
	mu       sync.Mutex // guards clusters
	clusters []*cluster
}

func share(r release, s setup) {
	shared[environment{r.version, s.name}] = sync.OnceValues(func() (*cluster, error) {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
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

// closeShared closes the shared clusters. It returns an error if the tests left anything
// in them.
func closeShared() error {
	var errs []error
	for _, c := range started.clusters {
		if err := c.awaitEmpty(); err != nil {
			errs = append(errs, fmt.Errorf("%s, %s: %w", c.version, c.name, err))
		}
		c.close()
	}
	return errors.Join(errs...)
}

// awaitEmpty waits until the cluster has no key with the prefix locker/ and no lease.
func (c *cluster) awaitEmpty() error {
	etcd, err := clientv3.New(c.config(root))
	if err != nil {
		return err
	}
	defer etcd.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
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
			return fmt.Errorf("the tests left the leases %v and the keys %v", leases, keys.Kvs)
		}
	}
}

// leasesLeft returns all leases except those of "etcdctl elect -l", which does not revoke
// its lease. They are recognized by their TTL of 60 s.
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

// everywhere runs a test on each release in each setup, on clusters shared with other
// tests.
func everywhere(t *testing.T, test func(t *testing.T, b bundle)) {
	t.Parallel()
	eachSetup(t, setups, func(t *testing.T, r release, s setup) {
		c, err := shared[environment{r.version, s.name}]()
		if err != nil {
			t.Fatal(err)
		}
		test(t, newBundle(t, c))
	})
}

// onOwnCluster runs a test on each release in the given setups, each time on a cluster of
// its own.
func onOwnCluster(t *testing.T, test func(t *testing.T, b bundle), in ...setup) {
	t.Parallel()
	eachSetup(t, in, func(t *testing.T, r release, s setup) {
		c, err := start(testContext(t), r, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.awaitEmpty(); err != nil {
				t.Error(err)
			}
			c.close()
		})
		test(t, newBundle(t, c))
	})
}

// eachSetup runs a test on each release in the given setups that the release supports.
func eachSetup(t *testing.T, in []setup, test func(t *testing.T, r release, s setup)) {
	for _, r := range releases {
		for _, s := range in {
			if s.on != nil && !s.on(r) {
				continue
			}
			t.Run(r.version+"/"+s.name, func(t *testing.T) {
				t.Parallel()
				table.count(t, environment{r.version, s.name})
				test(t, r, s)
			})
		}
	}
}
