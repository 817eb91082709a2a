package interop

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// What the backup has of a release is back on a lease that the client still renews.
func TestRestore_OfABackupEndsHoldsAndBlocksNoName(t *testing.T) {
	t.Parallel()
	for _, r := range releases {
		t.Run(r.version, func(t *testing.T) {
			dir, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup")
			cluster, err := etcdproc.Start(within(t), etcdproc.Options{Program: r.etcd, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cluster.Close)
			member, data := cluster.Member(0), filepath.Join(dir, "m0")
			restart := func(meanwhile func() error) {
				t.Helper()
				member.Kill()
				if err := meanwhile(); err != nil {
					t.Fatal(err)
				}
				if err := member.Restart(within(t)); err != nil {
					t.Fatal(err)
				}
			}
			config := clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()}
			newClient := func() *locker.Client {
				c, err := locker.New(connect(t, config), locker.WithTTL(ample))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			c, connected := newClient(), connect(t, config)
			held, released := lock(t, c, "held", ""), lock(t, c, "released", "")
			restart(func() error { return os.CopyFS(backup, os.DirFS(data)) })
			unlock(t, released)
			for range 50 { // more than is written after the backup was restored
				if _, err := connected.Put(within(t), "data", ""); err != nil {
					t.Fatal(err)
				}
			}
			later := lock(t, c, "later", "")
			restart(func() error {
				if err := os.RemoveAll(data); err != nil {
					return err
				}
				return os.CopyFS(data, os.DirFS(backup))
			})
			unlock(t, lock(t, newClient(), "released", "by another client"))
			for _, l := range []*locker.Lock{held, later} {
				select {
				case <-l.Context().Done():
				case <-within(t).Done():
				}
				if err := l.Err(); !errors.Is(err, locker.ErrLost) {
					t.Errorf("the hold of %s: %v", l.Name(), err)
				}
			}
			unlock(t, lock(t, c, "held", "again"))
		})
	}
}
