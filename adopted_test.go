package locker_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/jagregory/locker/v2"
)

// adopt returns a session over one of the program's own, which lives for a minute.
func (b bundle) adopt(t *testing.T, c *locker.Client) (*locker.Session, *concurrency.Session) {
	t.Helper()
	theirs, err := concurrency.NewSession(b.etcd, concurrency.WithTTL(60))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	s, err := c.AdoptSession(theirs)
	if err != nil {
		t.Fatal(err)
	}
	return s, theirs
}

func TestAdoptedSession_WithManyHoldsIsClosedOverASlowLink(t *testing.T) {
	t.Parallel()
	const holds, latency = 900, 20 * time.Millisecond
	b := setup(t)
	proxy := b.server.Proxy(t)
	c := newClient(t, proxy.Client(t))
	s, _ := b.adopt(t, c)
	fill(t, c, "", holds, locker.WithSession(s))
	proxy.Delay(latency)
	began := time.Now()
	if err := s.Close(); err != nil {
		t.Errorf("Close returned %v", err)
	}
	took := time.Since(began)
	t.Logf("closed in %v", took)
	if took > holds*latency/4 { // one after the other they take eight times as long
		t.Errorf("Close took %v", took)
	}
	if left := b.keys(t, locker.DefaultPrefix); len(left) > 0 {
		t.Errorf("%d keys are left, the first is %s", len(left), left[0])
	}
}

func TestAdoptedSession_LeavesNothingOfItsOwnAndAllThatIsNot(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c := b.client(t)
	s, theirs := b.adopt(t, c)
	l := lock(t, c, "a", "", locker.WithSession(s))
	member := l.Key()[strings.LastIndex(l.Key(), "/")+1:]
	foreign := fmt.Sprintf("%sm/%x", locker.DefaultPrefix, theirs.Lease()) // a Mutex over the same session
	for _, key := range []string{locker.DefaultPrefix + "b/" + member, locker.DefaultPrefix + "a/" + member + ".2", foreign} {
		if _, err := b.etcd.Put(ctx, key, "", clientv3.WithLease(theirs.Lease())); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close returned %v", err)
	}
	if left := b.keys(t, locker.DefaultPrefix); len(left) != 1 || left[0] != foreign {
		t.Errorf("left: %q", left)
	}
}
