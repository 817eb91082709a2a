package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

const (
	nameserver = "ns."         // the host that serves the zone
	hostmaster = "hostmaster." // the mailbox in the SOA record
)

// maxUDP is the maximum size of an answer over UDP. Common networks do not fragment such
// packets.
const maxUDP = 1232

// lifetimes bounds how long clients may use an answer.
type lifetimes struct {
	lease    time.Duration // of the locks
	answer   time.Duration // maximum for an answer with records
	negative time.Duration // for an answer without records
}

// zoneHandler answers queries from a cache of the locks, without a request to etcd.
type zoneHandler struct {
	name         string // lower case, with the final dot
	records      *locker.Cache
	lifetimes    lifetimes
	address      netip.Addr // of the server; invalid if unknown
	log          *slog.Logger
	nonTerminals *nonTerminals

	mu     sync.Mutex      // guards the fields below
	warned map[holdID]bool // those that were logged
}

// holdID identifies one hold of a name. Holders that share a name may have the
// same token.
type holdID struct {
	name  string
	token int64
	lease clientv3.LeaseID
}

func newZoneHandler(name string, records *locker.Cache, address netip.Addr, l lifetimes, log *slog.Logger) *zoneHandler {
	return &zoneHandler{
		name:         name,
		records:      records,
		lifetimes:    l,
		address:      address,
		log:          log,
		nonTerminals: newNonTerminals(name, records),
		warned:       make(map[holdID]bool),
	}
}

// ServeDNS answers one query.
func (z *zoneHandler) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	reply := z.reply(query)
	size := dns.MaxMsgSize
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = min(int(opt.UDPSize()), maxUDP)
		}
	}
	reply.Truncate(size)
	if err := w.WriteMsg(reply); err != nil {
		z.log.Debug("reply not sent", "to", w.RemoteAddr(), "error", err)
	}
}

// reply checks the query, and answers it if it can be answered.
func (z *zoneHandler) reply(query *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(query)
	opt := query.IsEdns0()
	if opt != nil {
		reply.SetEdns0(maxUDP, opt.Do())
	}
	if query.Opcode != dns.OpcodeQuery {
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	}
	if len(query.Question) != 1 || countOPT(query) > 1 { // the header may announce a question that is missing
		reply.Rcode = dns.RcodeFormatError
		return reply
	}
	question := query.Question[0]
	transfer := question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR
	left := z.lifetimes.lease - z.records.Age()
	switch {
	case opt != nil && opt.Version() != 0:
		reply.Rcode = dns.RcodeBadVers
	case question.Qclass != dns.ClassINET, transfer, !dns.IsSubDomain(z.name, question.Name):
		reply.Rcode = dns.RcodeRefused
	case left < 0:
		reply.Rcode = dns.RcodeServerFailure // the records may have expired
	default:
		// A holder that died just after the cache was last current keeps its lease for
		// this long.
		z.answer(reply, question, seconds(min(z.lifetimes.answer, left)))
	}
	return reply
}

// answer fills in the records for the question, or the SOA record if there are none.
func (z *zoneHandler) answer(reply *dns.Msg, question dns.Question, ttl uint32) {
	reply.Authoritative = true
	records, exists := z.find(question, ttl)
	switch {
	case !exists:
		reply.Rcode = dns.RcodeNameError
	case question.Qtype == dns.TypeANY: // RFC 8482: clients should query for a type
		reply.Answer = []dns.RR{&dns.HINFO{Hdr: header(question.Name, dns.TypeHINFO, ttl), Cpu: "RFC8482"}}
	default:
		reply.Answer = records
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{z.soa(z.name)}
		return
	}
	if ns, ok := reply.Answer[0].(*dns.NS); ok {
		addresses, _ := z.addresses(lockName(ns.Ns))
		glue := append(addressRecords(ns.Ns, dns.TypeA, ttl, addresses), addressRecords(ns.Ns, dns.TypeAAAA, ttl, addresses)...)
		reply.Extra = append(glue, reply.Extra...)
	}
}

// find returns the records for a question, and reports whether the name exists. The
// records spell the name as the question does, which some resolvers require.
func (z *zoneHandler) find(question dns.Question, ttl uint32) (records []dns.RR, exists bool) {
	name := lockName(question.Name)
	if of, ok := strings.CutPrefix(name, infoLabel+"."); ok {
		if holders := z.records.Holders(of); len(holders) > 0 {
			if question.Qtype == dns.TypeTXT {
				records = holderRecords(question.Name, ttl, holders)
			}
			return records, true
		}
	}
	apex := lockName(z.name)
	switch {
	case name == apex && question.Qtype == dns.TypeSOA:
		return []dns.RR{z.soa(question.Name)}, true
	case name == apex && question.Qtype == dns.TypeNS:
		return []dns.RR{&dns.NS{Hdr: header(question.Name, dns.TypeNS, ttl), Ns: nameserver + z.name}}, true
	}
	addresses, exists := z.addresses(name)
	exists = exists || name == apex || z.nonTerminals.contains(name)
	return addressRecords(question.Name, question.Qtype, ttl, addresses), exists
}

// addresses returns the addresses of all holders of a name, and reports whether the name
// exists.
func (z *zoneHandler) addresses(name string) (addresses []netip.Addr, exists bool) {
	if holders := z.records.Holders(name); len(holders) > 0 {
		return z.merge(holders), true
	}
	if name != nameserver+lockName(z.name) {
		return nil, false
	}
	if z.address.IsValid() {
		addresses = []netip.Addr{z.address}
	}
	return addresses, true
}

// merge returns the addresses of holders in their order, each once. It skips a holder
// whose value is not a list of addresses.
func (z *zoneHandler) merge(holders []locker.Holder) (merged []netip.Addr) {
	seen := make(map[netip.Addr]bool)
	for _, holder := range holders {
		addresses, err := parseAddresses(holder.Value)
		if err != nil {
			z.warnOnce(holder, err)
		}
		for _, address := range addresses {
			if len(merged) == maxNameAddresses {
				return merged
			}
			if !seen[address] {
				seen[address] = true
				merged = append(merged, address)
			}
		}
	}
	return merged
}

// warnOnce logs, once per hold, that a value is not a list of addresses.
func (z *zoneHandler) warnOnce(holder locker.Holder, err error) {
	const maxWarned = 1000 // holds to remember
	this := holdID{holder.Name, holder.Token, holder.Lease}
	z.mu.Lock()
	already := z.warned[this]
	if !already && len(z.warned) >= maxWarned {
		clear(z.warned)
	}
	z.warned[this] = true
	z.mu.Unlock()
	if !already {
		z.log.Warn("lock without addresses", "name", holder.Name, "token", holder.Token, "error", err)
	}
}

// soa returns the SOA record. Its serial is etcd's revision, which grows with each
// change.
func (z *zoneHandler) soa(name string) dns.RR {
	negative := seconds(z.lifetimes.negative)
	return &dns.SOA{
		Hdr:     header(name, dns.TypeSOA, negative),
		Ns:      nameserver + z.name,
		Mbox:    hostmaster + z.name,
		Serial:  uint32(z.records.Revision()),
		Refresh: 3600, // for secondary servers, which are not supported
		Retry:   600,
		Expire:  86400,
		Minttl:  negative,
	}
}

func addressRecords(name string, rrtype uint16, ttl uint32, addresses []netip.Addr) []dns.RR {
	var records []dns.RR
	for _, address := range addresses {
		switch {
		case rrtype == dns.TypeA && address.Is4():
			records = append(records, &dns.A{Hdr: header(name, rrtype, ttl), A: address.AsSlice()})
		case rrtype == dns.TypeAAAA && address.Is6():
			records = append(records, &dns.AAAA{Hdr: header(name, rrtype, ttl), AAAA: address.AsSlice()})
		}
	}
	return records
}

// holderRecords describes each holder of a name: the value, the token and the lease.
func holderRecords(name string, ttl uint32, holders []locker.Holder) []dns.RR {
	var records []dns.RR
	for _, holder := range slices.Compact(holders) { // equal records are not allowed (RFC 2181)
		records = append(records, &dns.TXT{Hdr: header(name, dns.TypeTXT, ttl), Txt: []string{
			"holder=" + abbreviate(holder.Value),
			fmt.Sprintf("token=%d", holder.Token),
			fmt.Sprintf("lease=%x", int64(holder.Lease)),
		}})
	}
	return records
}

func header(name string, rrtype uint16, ttl uint32) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func countOPT(query *dns.Msg) (n int) {
	for _, record := range query.Extra {
		if record.Header().Rrtype == dns.TypeOPT {
			n++
		}
	}
	return n
}

func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }
