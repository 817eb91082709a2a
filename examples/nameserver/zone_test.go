package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/jagregory/locker/v2/embedtest"
)

// testRecords are the records of most tests.
var testRecords = map[string]string{
	"example.com":       "192.0.2.80",
	"www.example.com":   "192.0.2.1,2001:db8::1,192.0.2.2",
	"a.b.example.com":   "192.0.2.3",
	"six.example.com":   "2001:db8::6",
	"odd.example.com":   "a flat in town",
	"UPPER.example.com": "192.0.2.4",
	"A.low.example.com": "192.0.2.7",
	"www.example.org":   "192.0.2.5",
	"notexample.com":    "192.0.2.6",
}

func TestQuery_GetsTheRightAnswer(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, testRecords)
	address := startServing(t, client, defaults(), t.Output())
	holder, err := client.Get(testContext(t), "www.example.com")
	if err != nil {
		t.Fatal(err)
	}
	const some, none, noName, refused = "NOERROR", "NODATA", "NXDOMAIN", "REFUSED"
	for _, c := range []struct {
		name, rrtype, outcome string
		want                  []string
	}{
		{"www.example.com.", "A", some, []string{"A 192.0.2.1", "A 192.0.2.2"}},
		{"www.example.com.", "AAAA", some, []string{"AAAA 2001:db8::1"}},
		{"wWw.eXAMPLe.CoM.", "A", some, []string{"A 192.0.2.1", "A 192.0.2.2"}},
		{"a.b.example.com.", "A", some, []string{"A 192.0.2.3"}},
		{"example.com.", "A", some, []string{"A 192.0.2.80"}},
		{"example.com.", "NS", some, []string{"NS ns.example.com."}},
		{"EXAMPLE.com.", "NS", some, []string{"NS ns.example.com."}},
		{"ns.example.com.", "A", some, []string{"A 127.0.0.1"}},
		{"_locker.www.example.com.", "TXT", some, []string{fmt.Sprintf(`TXT "holder=192.0.2.1,2001:db8::1,192.0.2.2" "token=%d" "lease=%x"`, holder.Token, int64(holder.Lease))}},
		{"_LOCKER.WWW.example.com.", "TXT", some, []string{fmt.Sprintf(`TXT "holder=192.0.2.1,2001:db8::1,192.0.2.2" "token=%d" "lease=%x"`, holder.Token, int64(holder.Lease))}},
		{"www.example.com.", "ANY", some, []string{`HINFO "RFC8482" ""`}},
		{"b.example.com.", "ANY", some, []string{`HINFO "RFC8482" ""`}},

		{"six.example.com.", "A", none, nil},
		{"www.example.com.", "TXT", none, nil},
		{"www.example.com.", "NS", none, nil},
		{"www.example.com.", "SOA", none, nil},
		{"example.com.", "MX", none, nil},
		{"ns.example.com.", "AAAA", none, nil},
		{"odd.example.com.", "A", none, nil},
		{"odd.example.com.", "AAAA", none, nil},
		{"b.example.com.", "A", none, nil},
		{"B.Example.com.", "TXT", none, nil},
		{"_locker.www.example.com.", "A", none, nil},
		{"_locker.example.com.", "A", none, nil},

		{"nobody.example.com.", "A", noName, nil},
		{"nobody.example.com.", "ANY", noName, nil},
		{"x.www.example.com.", "A", noName, nil},
		{"upper.example.com.", "A", noName, nil},
		{"low.example.com.", "A", noName, nil},
		{"_locker.nobody.example.com.", "TXT", noName, nil},
		{"_locker.b.example.com.", "TXT", noName, nil},
		{"_locker.ns.example.com.", "TXT", noName, nil},
		{"*.example.com.", "A", noName, nil},
		{`w\.w.example.com.`, "A", noName, nil},
		{`\000\255.example.com.`, "A", noName, nil},

		{"www.example.org.", "A", refused, nil},
		{"notexample.com.", "A", refused, nil},
		{"com.", "SOA", refused, nil},
		{".", "NS", refused, nil},
		{"example.com.", "AXFR", refused, nil},
		{"example.com.", "IXFR", refused, nil},
	} {
		for _, network := range networks {
			query := newQuery(c.name, dns.StringToType[c.rrtype])
			reply := ask(t, network, address, query)
			outcome := dns.RcodeToString[reply.Rcode]
			if outcome == some && len(reply.Answer) == 0 {
				outcome = none
			}
			what := fmt.Sprintf("%s %s over %s", c.name, c.rrtype, network)
			if outcome != c.outcome {
				t.Errorf("%s: %s, want %s", what, outcome, c.outcome)
			}
			if got := recordTexts(reply.Answer); !slices.Equal(got, c.want) {
				t.Errorf("%s: %q, want %q", what, got, c.want)
			}
			for _, record := range reply.Answer {
				if record.Header().Name != c.name || record.Header().Ttl != 7 {
					t.Errorf("%s: %s", what, record)
				}
			}
			if reply.Authoritative == (outcome == refused) || reply.RecursionAvailable || reply.Question[0] != query.Question[0] {
				t.Errorf("%s: wrong header:\n%s", what, reply)
			}
			if negative := len(reply.Ns) == 1 && reply.Ns[0].Header().Rrtype == dns.TypeSOA; negative != (outcome == none || outcome == noName) {
				t.Errorf("%s: %s with authority %q", what, outcome, recordTexts(reply.Ns))
			}
		}
	}
}

func TestSOA_SerialIsTheRevision(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, nil)
	address := startServing(t, client, defaults(), t.Output())
	var last uint32
	for i := range 3 {
		l, err := client.Lock(testContext(t), fmt.Sprintf("host%d.example.com", i), "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		var soa *dns.SOA
		eventually(t, "the server has seen the lock", func() bool {
			soa = ask(t, "udp", address, newQuery("example.com.", dns.TypeSOA)).Answer[0].(*dns.SOA)
			return int64(soa.Serial) >= l.Token()
		})
		if soa.Serial <= last {
			t.Errorf("the serial changed from %d to %d", last, soa.Serial)
		}
		last = soa.Serial
		if soa.Ns != "ns.example.com." || soa.Mbox != "hostmaster.example.com." || soa.Minttl != 3 || soa.Hdr.Ttl != 3 {
			t.Errorf("wrong SOA record: %s", soa)
		}
	}
	negative := ask(t, "udp", address, newQuery("nobody.example.com.", dns.TypeA)).Ns[0].(*dns.SOA)
	if negative.Hdr.Name != "example.com." || negative.Hdr.Ttl != 3 || negative.Minttl != 3 || negative.Serial < last {
		t.Errorf("wrong SOA record in a negative answer: %s", negative)
	}
}

func TestNS_HasTheServersAddressOrThatOfALock(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, nil)
	cache, err := client.NewCache(testContext(t), "")
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var zones []*zoneHandler
	for listening, glue := range map[string][]string{
		"192.0.2.1":        {"A 192.0.2.1"},
		"::ffff:192.0.2.1": {"A 192.0.2.1"},
		"fe80::1%eth0":     {"AAAA fe80::1"},
		"0.0.0.0":          {},
		"::":               {},
	} {
		z := newZoneHandler("example.com.", cache, ownAddress(netip.MustParseAddr(listening)), defaults().lifetimes, log)
		zones = append(zones, z)
		reply := z.reply(newQuery("example.com.", dns.TypeNS))
		if got := recordTexts(reply.Extra); !slices.Equal(got, glue) {
			t.Errorf("listening on %s: %q, want %q", listening, got, glue)
		}
		reply = z.reply(newQuery("ns.example.com.", dns.TypeAAAA))
		if v6 := len(glue) > 0 && strings.HasPrefix(glue[0], "AAAA"); reply.Rcode != dns.RcodeSuccess || (len(reply.Answer) > 0) != v6 {
			t.Errorf("listening on %s:\n%s", listening, reply)
		}
	}
	if _, err := client.Lock(testContext(t), "ns.example.com", "192.0.2.53,2001:db8::53"); err != nil {
		t.Fatal(err)
	}
	for _, z := range zones {
		eventually(t, "the lock takes precedence", func() bool {
			glue := recordTexts(z.reply(newQuery("example.com.", dns.TypeNS)).Extra)
			return slices.Equal(glue, []string{"A 192.0.2.53", "AAAA 2001:db8::53"})
		})
	}
}

func TestNonTerminal_ExistsWhileANameBelowIsHeld(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, nil)
	address := startServing(t, client, defaults(), t.Output())
	rcode := func(name string) int {
		return ask(t, "udp", address, newQuery(name, dns.TypeA)).Rcode
	}
	l, err := client.Lock(testContext(t), "a.b.c.example.com", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b.c.example.com.", "c.example.com."} {
		eventually(t, name+" exists", func() bool { return rcode(name) == dns.RcodeSuccess })
	}
	if rcode("a.example.com.") != dns.RcodeNameError {
		t.Error("a.example.com exists")
	}
	if err := l.Unlock(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.b.c.example.com.", "b.c.example.com.", "c.example.com."} {
		eventually(t, name+" is gone", func() bool { return rcode(name) == dns.RcodeNameError })
	}
}

func TestSharedName_HasTheAddressesOfAllItsHolders(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, nil)
	locks := share(t, client, "pool.example.com", "192.0.2.2,2001:db8::2", "192.0.2.1,192.0.2.2", "192.0.2.3")
	address := startServing(t, client, defaults(), t.Output())
	answers := func(rrtype uint16, want ...string) func() bool {
		return func() bool {
			reply := ask(t, "udp", address, newQuery("pool.example.com.", rrtype))
			return reply.Rcode == dns.RcodeSuccess && slices.Equal(recordTexts(reply.Answer), want)
		}
	}
	if !answers(dns.TypeA, "A 192.0.2.2", "A 192.0.2.1", "A 192.0.2.3")() || !answers(dns.TypeAAAA, "AAAA 2001:db8::2")() {
		t.Error("the answer does not have the addresses of all holders, the oldest first, each once")
	}
	about := ask(t, "tcp", address, newQuery("_locker.pool.example.com.", dns.TypeTXT)).Answer
	if len(about) != len(locks) {
		t.Errorf("%d holders are described as %q", len(locks), recordTexts(about))
	}
	for i, record := range about {
		if want := fmt.Sprintf("token=%d", locks[i].Token()); record.(*dns.TXT).Txt[1] != want {
			t.Errorf("holder %d is described as %s, want %s", i, record, want)
		}
	}
	for i, want := range [][]string{{"A 192.0.2.1", "A 192.0.2.2", "A 192.0.2.3"}, {"A 192.0.2.3"}} {
		if err := locks[i].Unlock(testContext(t)); err != nil {
			t.Fatal(err)
		}
		eventually(t, fmt.Sprintf("the answer is %q", want), answers(dns.TypeA, want...))
	}
	if !answers(dns.TypeAAAA)() {
		t.Error("the name has the IPv6 address of a host that is gone")
	}
}

func TestSharedName_IsNotHiddenByAHolderWithoutAddresses(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, nil)
	share(t, client, "pool.example.com", "a flat in town", "192.0.2.1", "a house", "192.0.2.2")
	var log output
	address := startServing(t, client, defaults(), &log)
	for range 3 {
		reply := ask(t, "udp", address, newQuery("pool.example.com.", dns.TypeA))
		if got := recordTexts(reply.Answer); !slices.Equal(got, []string{"A 192.0.2.1", "A 192.0.2.2"}) {
			t.Errorf("the answer is %q", got)
		}
	}
	if n := strings.Count(log.String(), "lock without addresses"); n != 2 || strings.Count(log.String(), "\n") != n {
		t.Errorf("%d lines for two holders without addresses:\n%s", n, &log)
	}
}

func TestLockWithoutAddresses_IsLoggedOncePerHold(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, map[string]string{"odd.example.com": "a flat \"in\" \x1b town\\" + strings.Repeat("x", 5000)})
	var log output
	address := startServing(t, client, defaults(), &log)
	for range 5 {
		for _, network := range networks {
			if reply := ask(t, network, address, newQuery("odd.example.com.", dns.TypeA)); reply.Rcode != dns.RcodeSuccess || len(reply.Answer) > 0 {
				t.Fatal(reply)
			}
		}
	}
	if n := strings.Count(log.String(), "lock without addresses"); n != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
	reply := ask(t, "udp", address, newQuery("_locker.odd.example.com.", dns.TypeTXT))
	if text := reply.Answer[0].(*dns.TXT).Txt[0]; !strings.HasPrefix(text, "holder=a flat ?in? ? town?xx") || len(text) > 255 {
		t.Errorf("the holder's TXT record has %q", text)
	}
}
