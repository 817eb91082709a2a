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

// The restored backup contains an entry that the client has released since, on a lease
// that the client still renews.
func TestRestore_OfABackupEndsHoldsAndBlocksNoName(t *testing.T) {
	t.Parallel()
	for _, r := range releases {
		t.Run(r.version, func(t *testing.T) {
			dir, backup := t.TempDir(), filepath.Join(t.TempDir(), "backup")
			process, err := etcdproc.Start(testContext(t), etcdproc.Options{Program: r.etcd, Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(process.Close)
			member, data := process.Member(0), filepath.Join(dir, "m0")
			restart := func(whileDown func() error) {
				t.Helper()
				member.Kill()
				if err := whileDown(); err != nil {
					t.Fatal(err)
				}
				if err := member.Restart(testContext(t)); err != nil {
					t.Fatal(err)
				}
			}
			config := clientv3.Config{Endpoints: process.Endpoints(), Logger: zap.NewNop()}
			newClient := func() *locker.Client {
				c, err := locker.New(connect(t, config), locker.WithTTL(longTTL))
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
			for range 50 { // more writes than follow the restoration of the backup
				if _, err := connected.Put(testContext(t), "data", ""); err != nil {
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
				case <-testContext(t).Done():
				}
				if err := l.Err(); !errors.Is(err, locker.ErrLost) {
					t.Errorf("the hold of %s ended with %v, want ErrLost", l.Name(), err)
				}
			}
			unlock(t, lock(t, c, "held", "again"))
		})
	}
}
