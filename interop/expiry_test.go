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
		l := lock(t, b.clientOver(t, connect(t, config), locker.WithTTL(shortTTL)), "a", "")
		next := lockAsync(testContext(t), b.client(t), "a", "")
		b.awaitEntries(t, "a", 2)
		proxy.Cut()
		receive(t, l.Context().Done())
		ended := time.Now()
		var lost *locker.LostError
		if !errors.As(l.Err(), &lost) || lost.Reason != locker.Expired {
			t.Errorf("the hold ended with %v, want a LostError with Expired", l.Err())
		}
		o := receive(t, next)
		if o.err != nil || o.at.Before(ended) || o.lock.Token() <= l.Token() {
			t.Fatalf("the next Lock returned %+v, the loss was at %v", o, ended)
		}
	})
}

func TestHold_OfADeadClientIsFollowedAfterItsTTL(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		etcd := connect(t, b.config(service))
		l := lock(t, b.clientOver(t, etcd, locker.WithTTL(shortTTL)), "a", "")
		next := lockAsync(testContext(t), b.client(t), "a", "")
		b.awaitEntries(t, "a", 2)
		// It can neither renew its lease nor revoke it.
		_ = etcd.Close()
		died := time.Now()
		o := receive(t, next)
		if o.err != nil || o.lock.Token() <= l.Token() {
			t.Fatalf("the next Lock returned %+v", o)
		}
		// etcd may take a second to notice; the rest is for a machine busy with the other
		// tests.
		if took := o.at.Sub(died); took > shortTTL+10*time.Second {
			t.Errorf("the next Lock returned %v after the death of the holder", took)
		}
	})
}
