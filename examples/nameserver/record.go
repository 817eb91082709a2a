package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// metadata is the label below which the server tells about a lock. No host has it in its name.
const metadata = "_locker"

// maxAddresses keeps the largest answer, with room to spare, within a message of TCP.
const maxAddresses = 256

// lockName returns the name of the lock that stands for a domain name: in lower case, without the
// final dot.
func lockName(domain string) string {
	return strings.TrimSuffix(dns.CanonicalName(domain), ".")
}

// checkHost returns the name of the lock for a host, or why there can be none in that zone.
func checkHost(host, zone string) (string, error) {
	if err := checkName(host); err != nil {
		return "", fmt.Errorf("%q is not a host name: %w", host, err)
	}
	name := lockName(host)
	inZone := dns.IsSubDomain(dns.Fqdn(zone), dns.Fqdn(name))
	switch {
	case !inZone && !strings.Contains(name, "."):
		return "", fmt.Errorf("%s is not in the zone %s (%[1]s.%[2]s?)", name, lockName(zone))
	case !inZone:
		return "", fmt.Errorf("%s is not in the zone %s", name, lockName(zone))
	case slices.Contains(strings.Split(name, "."), metadata):
		return "", fmt.Errorf("%s cannot be registered: below %s the server tells about the locks themselves", name, metadata)
	}
	return name, nil
}

// checkZone returns the zone as it stands in answers: in lower case, with the final dot.
func checkZone(zone string) (string, error) {
	err := checkName(zone)
	if _, ok := dns.IsDomainName(hostmaster + dns.Fqdn(zone)); err == nil && !ok {
		err = errors.New("it is too long")
	}
	if err != nil {
		return "", fmt.Errorf("%q is not a zone: %w", zone, err)
	}
	return dns.CanonicalName(zone), nil
}

// checkName accepts what hosts are called, and underscores. The DNS would take any bytes.
func checkName(name string) error {
	strange := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}
	if i := strings.IndexFunc(name, strange); i >= 0 {
		return fmt.Errorf("%q is none of letters, digits, hyphen, underscore and dot", []rune(name[i:])[0])
	}
	if name == "" || name == "." {
		return errors.New("it is empty")
	}
	if _, ok := dns.IsDomainName(name); !ok {
		return errors.New("it has an empty or overlong part, or is too long")
	}
	return nil
}

// parseAddresses reads the value of a lock: addresses, separated by commas.
func parseAddresses(value string) ([]netip.Addr, error) {
	var addresses []netip.Addr
	for text := range strings.SplitSeq(value, ",") {
		address, err := netip.ParseAddr(strings.TrimSpace(text))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is not an IP address", abbreviate(text))
		case address.Zone() != "":
			return nil, fmt.Errorf("%s means something on one machine only", abbreviate(text))
		}
		if address = address.Unmap(); !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
		if len(addresses) > maxAddresses {
			return nil, fmt.Errorf("there are more than %d addresses", maxAddresses)
		}
	}
	return addresses, nil
}

// formatAddresses is the value of a lock.
func formatAddresses(addresses []netip.Addr) string {
	texts := make([]string, len(addresses))
	for i, address := range addresses {
		texts[i] = address.String()
	}
	return strings.Join(texts, ",")
}

// abbreviate makes text fit into a line of a log, and into a string of a TXT record.
func abbreviate(text string) string {
	const limit = 200
	if len(text) > limit {
		text = text[:limit] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, text)
}
