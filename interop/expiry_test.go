package interop

import (
	"errors"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

func TestHold_ThatIsCutOffEndsBeforeTheNextHolds(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		proxy, err := embedtest.NewProxy(b.Endpoints()...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = proxy.Close() })
		config := b.config(service)
		config.Endpoints = proxy.Endpoints()
		l := lock(t, b.over(t, connect(t, config), locker.WithTTL(brief)), "a", "")
		next := lockAsync(within(t), b.client(t), "a", "")
		b.queued(t, "a", 2)
		proxy.Cut()
		receive(t, l.Context().Done())
		ended := time.Now()
		var lost *locker.LostError
		if !errors.As(l.Err(), &lost) || lost.Reason != locker.Expired {
			t.Errorf("lost by %v", l.Err())
		}
		o := receive(t, next)
		if o.err != nil || o.at.Before(ended) || o.lock.Token() <= l.Token() {
			t.Fatalf("%+v after the loss at %v", o, ended)
		}
	})
}

func TestHold_OfADeadClientIsFollowedAfterItsTTL(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		etcd := connect(t, b.config(service))
		l := lock(t, b.over(t, etcd, locker.WithTTL(brief)), "a", "")
		next := lockAsync(within(t), b.client(t), "a", "")
		b.queued(t, "a", 2)
		// It can neither renew its lease nor give it up.
		_ = etcd.Close()
		died := time.Now()
		o := receive(t, next)
		if o.err != nil || o.lock.Token() <= l.Token() {
			t.Fatalf("%+v", o)
		}
		// A second for etcd to notice, and one for a machine that is busy with all the others.
		if took := o.at.Sub(died); took > brief+10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
