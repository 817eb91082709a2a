package main

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestAnswerTTL_IsBoundedByTheFlagAndTheLease(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	holdAll(t, etcd, testRecords)
	for _, c := range []struct {
		lease, answer time.Duration
		least, most   uint32
	}{
		{time.Minute, 7 * time.Second, 7, 7},
		{time.Minute, 0, 0, 0},
		{time.Minute, 1900 * time.Millisecond, 1, 1},
		{10 * time.Second, time.Hour, 1, 10},
		{time.Hour, 24 * time.Hour, 1800, 3600},
	} {
		s := defaults()
		s.lifetimes.lease, s.lifetimes.answer = c.lease, c.answer
		address := startServing(t, clientOf(t, etcd.Client(t), c.lease), s, t.Output())
		for _, name := range []string{"www.example.com.", "ns.example.com."} {
			reply := ask(t, "udp", address, newQuery(name, dns.TypeA))
			if ttl := reply.Answer[0].Header().Ttl; ttl < c.least || ttl > c.most {
				t.Errorf("with a lease of %v and an answer TTL of %v: %s", c.lease, c.answer, reply.Answer[0])
			}
		}
	}
}

func TestServer_AnswersSERVFAILWhenEtcdIsUnreachableForTheTTL(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	holdAll(t, etcd, testRecords)
	network := etcd.Proxy(t)
	s := defaults()
	s.lifetimes.lease, s.lifetimes.answer = 2*time.Second, time.Hour
	began := time.Now()
	address := startServing(t, clientOf(t, network.Client(t), s.lifetimes.lease), s, t.Output())
	www := func() *dns.Msg { return ask(t, "udp", address, newQuery("www.example.com.", dns.TypeA)) }
	if reply := www(); len(reply.Answer) != 2 {
		t.Fatal(reply)
	}

	network.Cut()
	cut := time.Now()
	eventually(t, "the server answers SERVFAIL", func() bool {
		since := time.Since(cut)
		reply := www()
		if reply.Rcode == dns.RcodeServerFailure {
			return true
		}
		left := s.lifetimes.lease - since // of a lease renewed just before the cut
		if ttl := time.Duration(reply.Answer[0].Header().Ttl) * time.Second; ttl > left {
			t.Fatalf("%v after the cut, an answer has a TTL of %v", since, ttl)
		}
		return false
	})
	if took := time.Since(cut); took > s.lifetimes.lease+slack {
		t.Errorf("SERVFAIL came only after %v", took)
	}
	if age := time.Since(began); age < s.lifetimes.lease { // the maximum age of the server's copy
		t.Errorf("SERVFAIL came when the copy was at most %v old", age)
	}
	for _, q := range []*dns.Msg{newQuery("example.com.", dns.TypeSOA), newQuery("nobody.example.com.", dns.TypeA)} {
		if reply := ask(t, "tcp", address, q); reply.Rcode != dns.RcodeServerFailure || len(reply.Answer)+len(reply.Ns) > 0 {
			t.Errorf("not SERVFAIL:\n%s", reply)
		}
	}
	if reply := ask(t, "udp", address, newQuery("example.org.", dns.TypeA)); reply.Rcode != dns.RcodeRefused {
		t.Errorf("a query for another zone was not refused:\n%s", reply)
	}

	network.Heal()
	eventually(t, "the server answers again", func() bool { return len(www().Answer) == 2 })
}
