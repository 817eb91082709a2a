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

// the records of most tests
var records = map[string]string{
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

func TestEachQueryGetsItsAnswer(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := hosts(t, etcd, records)
	address := serving(t, client, defaults(), t.Output())
	holder, err := client.Get(within(t), "www.example.com")
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
			query := question(c.name, dns.StringToType[c.rrtype])
			reply := ask(t, network, address, query)
			outcome := dns.RcodeToString[reply.Rcode]
			if outcome == some && len(reply.Answer) == 0 {
				outcome = none
			}
			what := fmt.Sprintf("%s %s by %s", c.name, c.rrtype, network)
			if outcome != c.outcome {
				t.Errorf("%s: %s, want %s", what, outcome, c.outcome)
			}
			if got := data(reply.Answer); !slices.Equal(got, c.want) {
				t.Errorf("%s: %q, want %q", what, got, c.want)
			}
			for _, record := range reply.Answer {
				if record.Header().Name != c.name || record.Header().Ttl != 7 {
					t.Errorf("%s: %s", what, record)
				}
			}
			if reply.Authoritative == (outcome == refused) || reply.RecursionAvailable || reply.Question[0] != query.Question[0] {
				t.Errorf("%s: the header is wrong:\n%s", what, reply)
			}
			if negative := len(reply.Ns) == 1 && reply.Ns[0].Header().Rrtype == dns.TypeSOA; negative != (outcome == none || outcome == noName) {
				t.Errorf("%s: %s with authority %q", what, outcome, data(reply.Ns))
			}
		}
	}
}

func TestTheSerialIsTheRevision(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := hosts(t, etcd, nil)
	address := serving(t, client, defaults(), t.Output())
	var last uint32
	for i := range 3 {
		l, err := client.Lock(within(t), fmt.Sprintf("host%d.example.com", i), "192.0.2.1")
		if err != nil {
			t.Fatal(err)
		}
		var soa *dns.SOA
		eventually(t, "the server has seen the lock", func() bool {
			soa = ask(t, "udp", address, question("example.com.", dns.TypeSOA)).Answer[0].(*dns.SOA)
			return int64(soa.Serial) >= l.Token()
		})
		if soa.Serial <= last {
			t.Errorf("the serial went from %d to %d", last, soa.Serial)
		}
		last = soa.Serial
		if soa.Ns != "ns.example.com." || soa.Mbox != "hostmaster.example.com." || soa.Minttl != 3 || soa.Hdr.Ttl != 3 {
			t.Errorf("it is %s", soa)
		}
	}
	negative := ask(t, "udp", address, question("nobody.example.com.", dns.TypeA)).Ns[0].(*dns.SOA)
	if negative.Hdr.Name != "example.com." || negative.Hdr.Ttl != 3 || negative.Minttl != 3 || negative.Serial < last {
		t.Errorf("with no such name it is %s", negative)
	}
}

func TestTheNameServerHasItsOwnAddressOrThatOfTheLock(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := hosts(t, etcd, nil)
	cache, err := client.NewCache(within(t), "")
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var zones []*zone
	for listening, glue := range map[string][]string{
		"192.0.2.1":        {"A 192.0.2.1"},
		"::ffff:192.0.2.1": {"A 192.0.2.1"},
		"fe80::1%eth0":     {"AAAA fe80::1"},
		"0.0.0.0":          {},
		"::":               {},
	} {
		z := newZone("example.com.", cache, ownAddress(netip.MustParseAddr(listening)), defaults().lifetimes, log)
		zones = append(zones, z)
		reply := z.reply(question("example.com.", dns.TypeNS))
		if got := data(reply.Extra); !slices.Equal(got, glue) {
			t.Errorf("listening on %s: %q, want %q", listening, got, glue)
		}
		reply = z.reply(question("ns.example.com.", dns.TypeAAAA))
		if v6 := len(glue) > 0 && strings.HasPrefix(glue[0], "AAAA"); reply.Rcode != dns.RcodeSuccess || (len(reply.Answer) > 0) != v6 {
			t.Errorf("listening on %s:\n%s", listening, reply)
		}
	}
	if _, err := client.Lock(within(t), "ns.example.com", "192.0.2.53,2001:db8::53"); err != nil {
		t.Fatal(err)
	}
	for _, z := range zones {
		eventually(t, "the lock prevails", func() bool {
			glue := data(z.reply(question("example.com.", dns.TypeNS)).Extra)
			return slices.Equal(glue, []string{"A 192.0.2.53", "AAAA 2001:db8::53"})
		})
	}
}

func TestANonTerminalComesAndGoesWithWhatIsBelow(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := hosts(t, etcd, nil)
	address := serving(t, client, defaults(), t.Output())
	rcode := func(name string) int {
		return ask(t, "udp", address, question(name, dns.TypeA)).Rcode
	}
	l, err := client.Lock(within(t), "a.b.c.example.com", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b.c.example.com.", "c.example.com."} {
		eventually(t, name+" exists", func() bool { return rcode(name) == dns.RcodeSuccess })
	}
	if rcode("a.example.com.") != dns.RcodeNameError {
		t.Error("a.example.com exists")
	}
	if err := l.Unlock(within(t)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.b.c.example.com.", "b.c.example.com.", "c.example.com."} {
		eventually(t, name+" is gone", func() bool { return rcode(name) == dns.RcodeNameError })
	}
}

func TestALockWithoutAddressesIsComplainedOfOnce(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := hosts(t, etcd, map[string]string{"odd.example.com": "a flat \"in\" \x1b town\\" + strings.Repeat("x", 5000)})
	var log output
	address := serving(t, client, defaults(), &log)
	for range 5 {
		for _, network := range networks {
			if reply := ask(t, network, address, question("odd.example.com.", dns.TypeA)); reply.Rcode != dns.RcodeSuccess || len(reply.Answer) > 0 {
				t.Fatal(reply)
			}
		}
	}
	if n := strings.Count(log.String(), "lock without addresses"); n != 1 || strings.Count(log.String(), "\n") != 1 {
		t.Errorf("%d lines:\n%s", n, &log)
	}
	reply := ask(t, "udp", address, question("_locker.odd.example.com.", dns.TypeTXT))
	if text := reply.Answer[0].(*dns.TXT).Txt[0]; !strings.HasPrefix(text, "holder=a flat ?in? ? town?xx") || len(text) > 255 {
		t.Errorf("of the holder it says %q", text)
	}
}
