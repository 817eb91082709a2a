package promlocker_test

import (
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/contrib/prometheus"
	"github.com/jagregory/locker/v2"
)

const (
	renewal = "locker_session_renewal_duration_seconds"
	slack   = "locker_session_slack_seconds"
	ratio   = "locker_session_slack_ratio"
	resets  = "locker_watch_resets_total"
)

func TestRenewals_AreCountedWithTheirSlack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.want(0, renewal, labels{"error_type": ""})
	b.want(0, slack, labels{})
	b.want(0, ratio, labels{})
	var clients []*locker.Client
	ttls := make(map[clientv3.LeaseID]time.Duration)
	for i, ttl := range []time.Duration{brief, 8 * time.Second} {
		clients = append(clients, b.client(b.etcd.Client(t), ttl))
		b.lock(clients[i], fmt.Sprint("role", i))
		e := receive(t, b.sessions)
		ttls[e.Lease] = ttl
	}
	all := []locker.Renewal{receive(t, b.renewals), receive(t, b.renewals), receive(t, b.renewals)}
	for _, client := range clients {
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for len(b.renewals) > 0 {
		all = append(all, receive(t, b.renewals))
	}
	var took, left, share float64
	for _, e := range all {
		if e.Err != nil {
			t.Fatal(e.Err)
		}
		took += e.Took.Seconds()
		left += e.Left.Seconds()
		share += e.Left.Seconds() / ttls[e.Lease].Seconds()
	}
	b.want(float64(len(all)), renewal, labels{"error_type": ""})
	b.wantSum(took, renewal, labels{"error_type": ""})
	b.want(float64(len(all)), slack, labels{})
	b.wantSum(left, slack, labels{})
	b.want(float64(len(all)), ratio, labels{})
	b.wantSum(share, ratio, labels{})
	b.want(0, renewal, labels{"error_type": "lost"})
}

func TestRenewals_ThatLoseTheLeaseHaveNoSlack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := b.client(b.etcd.Client(t), brief)
	b.lock(client, "role")
	b.etcd.ExpireLease(t, receive(t, b.sessions).Lease)
	renewed := 0.0
	for receive(t, b.renewals).Err == nil {
		renewed++
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	b.want(1, renewal, labels{"error_type": "lost"})
	b.want(renewed, renewal, labels{"error_type": ""})
	b.want(renewed, slack, labels{})
	b.want(renewed, ratio, labels{})
}

func TestWatchResets_AreCountedByCause(t *testing.T) {
	t.Parallel()
	b := setup(t)
	proxy := b.etcd.Proxy(t)
	client := b.client(proxy.Client(t), unhurried)
	causes := []string{"disconnect", "no answer", "compaction", "refused", "restore"}
	for _, cause := range causes {
		b.want(0, resets, labels{"cause": cause})
	}
	for state, err := range client.Watch(within(t), "role") {
		if err != nil {
			t.Fatal(err)
		}
		if state.Holder.Value == "holder" {
			break
		}
		proxy.Reset()
		if cause := receive(t, b.resets).Cause; cause != "disconnect" {
			t.Errorf("the watches were opened again because of %q", cause)
		}
		if _, err := client.Lock(within(t), "role", "holder"); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	b.want(1+float64(len(b.resets)), resets, labels{"cause": "disconnect"})
	for _, cause := range causes[1:] {
		b.want(0, resets, labels{"cause": cause})
	}
}

func TestNativeHistograms_StandBesideTheOthers(t *testing.T) {
	t.Parallel()
	b := setup(t, promlocker.WithNativeHistograms(1.1))
	client := b.client(b.etcd.Client(t), unhurried)
	b.unlock(b.lock(client, "role"))
	h := b.series(hold, labels{"end": "released"}).GetHistogram()
	if len(h.GetPositiveSpan()) == 0 || len(h.GetBucket()) == 0 {
		t.Errorf("not both kinds of buckets: %v", h)
	}
	b = setup(t)
	b.unlock(b.lock(b.client(b.etcd.Client(t), unhurried), "role"))
	h = b.series(hold, labels{"end": "released"}).GetHistogram()
	if len(h.GetPositiveSpan()) != 0 || len(h.GetBucket()) == 0 {
		t.Errorf("not only classic buckets: %v", h)
	}
}
