package main

import (
	"encoding/hex"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/jagregory/locker/v2/embedtest"
)

// crowdedRecords has a name with more addresses than fit into a UDP message.
var crowdedRecords = map[string]string{"crowd.example.com": manyAddresses(maxAddresses)}

func TestAnswer_OverUDPIsTruncatedToFit(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	address := startServing(t, holdAll(t, etcd, crowdedRecords), defaults(), t.Output())
	for _, c := range []struct {
		edns  uint16 // 0 without EDNS
		limit int
	}{{0, 512}, {100, 512}, {512, 512}, {700, 700}, {1232, 1232}, {4096, 1232}, {65535, 1232}} {
		query := newQuery("crowd.example.com.", dns.TypeAAAA)
		if c.edns > 0 {
			query.SetEdns0(c.edns, false)
		}
		reply := ask(t, "udp", address, query)
		if size := wireLen(t, reply); !reply.Truncated || size > c.limit || size < c.limit-50 {
			t.Errorf("with EDNS size %d: %d bytes, truncated: %v", c.edns, size, reply.Truncated)
		}
		if opt := reply.IsEdns0(); (opt != nil) != (c.edns > 0) || opt != nil && opt.UDPSize() != 1232 {
			t.Errorf("with EDNS size %d: the answer's OPT record is %v", c.edns, opt)
		}
		reply = ask(t, "tcp", address, query)
		if reply.Truncated || len(reply.Answer) != maxAddresses {
			t.Errorf("with EDNS size %d over TCP: %d records, truncated: %v", c.edns, len(reply.Answer), reply.Truncated)
		}
	}
	if small := ask(t, "udp", address, newQuery("ns.example.com.", dns.TypeA)); small.Truncated {
		t.Error("an answer that fits is marked as truncated")
	}
}

func TestAnswer_HasAThousandAddressesOfASharedName(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := clientOf(t, etcd.Client(t), time.Minute)
	const hosts = 6 // with more addresses than an answer may have
	all := strings.Split(manyAddresses(hosts*maxAddresses), ",")
	for addresses := range slices.Chunk(all, maxAddresses) {
		share(t, client, "crowd.example.com", strings.Join(addresses, ","))
	}
	address := startServing(t, client, defaults(), t.Output())
	query := newQuery("crowd.example.com.", dns.TypeAAAA)
	if reply := ask(t, "udp", address, query); !reply.Truncated || wireLen(t, reply) > 512 {
		t.Errorf("over UDP: %d bytes, truncated: %v", wireLen(t, reply), reply.Truncated)
	}
	reply := ask(t, "tcp", address, query)
	var got []string
	for _, record := range reply.Answer {
		got = append(got, record.(*dns.AAAA).AAAA.String())
	}
	if reply.Truncated || !slices.Equal(got, all[:maxNameAddresses]) {
		t.Errorf("over TCP: %d records from %v, truncated: %v", len(got), got[:1], reply.Truncated)
	}
}

// wireLen returns the size of a message on the wire.
func wireLen(t *testing.T, message *dns.Msg) int {
	t.Helper()
	message.Compress = true
	wire, err := message.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return len(wire)
}

func TestQuery_OfAnUnsupportedKindIsRefused(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	address := startServing(t, holdAll(t, etcd, testRecords), defaults(), t.Output())
	query := func(change func(*dns.Msg)) *dns.Msg {
		q := newQuery("www.example.com.", dns.TypeA)
		change(q)
		return q
	}
	for _, c := range []struct {
		what  string
		query *dns.Msg
		want  int
	}{
		{"EDNS version 1", query(func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		{"two OPT records", query(func(q *dns.Msg) { q.SetEdns0(1232, false); q.SetEdns0(1232, false) }), dns.RcodeFormatError},
		{"class CHAOS", query(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"class ANY", query(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		{"STATUS", query(func(q *dns.Msg) { q.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		{"NOTIFY", query(func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"UPDATE", query(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"no question", query(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		{"two questions", query(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError},
	} {
		for _, network := range networks {
			reply := ask(t, network, address, c.query)
			if reply.Rcode != c.want || len(reply.Answer) > 0 || !reply.Response || reply.Opcode != c.query.Opcode {
				t.Errorf("%s over %s:\n%s", c.what, network, reply)
			}
		}
	}
	reply := ask(t, "udp", address, query(func(q *dns.Msg) { q.SetEdns0(1232, true) }))
	if opt := reply.IsEdns0(); opt == nil || !opt.Do() || opt.Version() != 0 {
		t.Errorf("the answer lacks the DO bit: %v", opt)
	}
}

func TestServer_SurvivesMalformedPackets(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	address := startServing(t, holdAll(t, etcd, testRecords), defaults(), t.Output())
	good, err := newQuery("www.example.com.", dns.TypeA).SetEdns0(1232, false).Pack()
	if err != nil {
		t.Fatal(err)
	}
	bare, err := hex.DecodeString("abcd01000001000000000000") // claims to have a question
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	if err := udp.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := udp.Write(bare); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 512)
	if n, err := udp.Read(reply); err != nil || n < 12 || reply[0] != bare[0] || reply[1] != bare[1] || reply[3]&0xf != dns.RcodeFormatError {
		t.Fatalf("answer to a missing question: %x, %v", reply[:n], err)
	}

	packets := [][]byte{{}, {0}, bare[:11], make([]byte, 12), make([]byte, 4096)}
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		packet := append([]byte(nil), good...)
		for range 1 + random.IntN(4) {
			packet[2+random.IntN(len(packet)-2)] = byte(random.Uint32())
		}
		packets = append(packets, packet[:2+random.IntN(len(packet)-2)], packet)
	}
	for i, packet := range packets {
		if _, err := udp.Write(packet); err != nil {
			t.Fatal(err)
		}
		if i%100 > 0 {
			continue
		}
		for _, network := range networks {
			if reply := ask(t, network, address, newQuery("www.example.com.", dns.TypeA)); len(reply.Answer) != 2 {
				t.Fatalf("after %d packets:\n%s", i, reply)
			}
		}
	}
}
