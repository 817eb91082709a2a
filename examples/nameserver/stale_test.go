package main

import (
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestAnAnswerLivesNoLongerThanConfiguredOrThanTheLease(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	hosts(t, etcd, records)
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
		address := serving(t, clientOf(t, etcd.Client(t), c.lease), s, t.Output())
		for _, name := range []string{"www.example.com.", "ns.example.com."} {
			reply := ask(t, "udp", address, question(name, dns.TypeA))
			if ttl := reply.Answer[0].Header().Ttl; ttl < c.least || ttl > c.most {
				t.Errorf("with a lease of %v and at most %v: %s", c.lease, c.answer, reply.Answer[0])
			}
		}
	}
}

func TestItKnowsNothingWhenItHasNotHeardOfEtcdForTheTTL(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	hosts(t, etcd, records)
	network := etcd.Proxy(t)
	s := defaults()
	s.lifetimes.lease, s.lifetimes.answer = 2*time.Second, time.Hour
	began := time.Now()
	address := serving(t, clientOf(t, network.Client(t), s.lifetimes.lease), s, t.Output())
	www := func() *dns.Msg { return ask(t, "udp", address, question("www.example.com.", dns.TypeA)) }
	if reply := www(); len(reply.Answer) != 2 {
		t.Fatal(reply)
	}

	network.Cut()
	cut := time.Now()
	eventually(t, "it admits that it does not know", func() bool {
		since := time.Since(cut)
		reply := www()
		if reply.Rcode == dns.RcodeServerFailure {
			return true
		}
		left := s.lifetimes.lease - since // of a lease that was renewed just before the cut
		if ttl := time.Duration(reply.Answer[0].Header().Ttl) * time.Second; ttl > left {
			t.Fatalf("%v after the cut it gives an answer that lives for %v", since, ttl)
		}
		return false
	})
	if took := time.Since(cut); took > s.lifetimes.lease+busy {
		t.Errorf("it took %v", took)
	}
	if age := time.Since(began); age < s.lifetimes.lease { // of its copy, at most
		t.Errorf("it gave up a copy no older than %v", age)
	}
	for _, q := range []*dns.Msg{question("example.com.", dns.TypeSOA), question("nobody.example.com.", dns.TypeA)} {
		if reply := ask(t, "tcp", address, q); reply.Rcode != dns.RcodeServerFailure || len(reply.Answer)+len(reply.Ns) > 0 {
			t.Errorf("nor should it know this:\n%s", reply)
		}
	}
	if reply := ask(t, "udp", address, question("example.org.", dns.TypeA)); reply.Rcode != dns.RcodeRefused {
		t.Errorf("another zone is none of its business:\n%s", reply)
	}

	network.Heal()
	eventually(t, "it knows again", func() bool { return len(www().Answer) == 2 })
}
