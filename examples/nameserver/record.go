package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// infoLabel is the label below which the server gives information about locks. Host names
// must not contain it.
const infoLabel = "_locker"

// These ensure that the largest answer fits into a TCP message with room to spare.
const (
	maxAddresses     = 256  // of a host
	maxNameAddresses = 1000 // of all hosts that share a name
)

// lockName returns the name of the lock for a domain name: lower case, without the final
// dot.
func lockName(domain string) string {
	return strings.TrimSuffix(dns.CanonicalName(domain), ".")
}

// checkHost returns the name of the lock for a host, or an error if the host cannot be
// registered in the zone.
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
	case slices.Contains(strings.Split(name, "."), infoLabel):
		return "", fmt.Errorf("%s cannot be registered: %s is reserved for information about locks", name, infoLabel)
	}
	return name, nil
}

// checkZone returns the zone as it appears in answers: lower case, with the final dot.
func checkZone(zone string) (string, error) {
	err := checkName(zone)
	if _, ok := dns.IsDomainName(hostmaster + dns.Fqdn(zone)); err == nil && !ok {
		err = errors.New("too long")
	}
	if err != nil {
		return "", fmt.Errorf("%q is not a zone: %w", zone, err)
	}
	return dns.CanonicalName(zone), nil
}

// checkName accepts the characters of host names, and underscores. DNS itself allows any
// bytes.
func checkName(name string) error {
	invalid := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	}
	if i := strings.IndexFunc(name, invalid); i >= 0 {
		return fmt.Errorf("%q is not a letter, digit, hyphen, underscore or dot", []rune(name[i:])[0])
	}
	if name == "" || name == "." {
		return errors.New("empty")
	}
	if _, ok := dns.IsDomainName(name); !ok {
		return errors.New("it has an empty or overlong label, or is too long")
	}
	return nil
}

// parseAddresses parses the value of a lock: comma-separated addresses.
func parseAddresses(value string) ([]netip.Addr, error) {
	var addresses []netip.Addr
	for text := range strings.SplitSeq(value, ",") {
		address, err := netip.ParseAddr(strings.TrimSpace(text))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is not an IP address", abbreviate(text))
		case address.Zone() != "":
			return nil, fmt.Errorf("%s has a zone, which is valid on one machine only", abbreviate(text))
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

// formatAddresses returns the value of a lock for the given addresses.
func formatAddresses(addresses []netip.Addr) string {
	texts := make([]string, len(addresses))
	for i, address := range addresses {
		texts[i] = address.String()
	}
	return strings.Join(texts, ",")
}

// abbreviate makes text fit into a line of a log and into a string of a TXT record.
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
