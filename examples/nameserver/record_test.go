package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseAddresses_AcceptsLists(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"192.0.2.1":                     "192.0.2.1",
		"192.0.2.2,192.0.2.1":           "192.0.2.2,192.0.2.1", // in the order given
		" 192.0.2.1 , 2001:DB8:0::1":    "192.0.2.1,2001:db8::1",
		"192.0.2.1,192.0.2.1":           "192.0.2.1",
		"::ffff:192.0.2.1,192.0.2.1,::": "192.0.2.1,::",
		manyAddresses(maxAddresses):     manyAddresses(maxAddresses),
	} {
		addresses, err := parseAddresses(value)
		if got := formatAddresses(addresses); err != nil || got != want {
			t.Errorf("%q became %q, %v, want %q", value, got, err, want)
		}
	}
}

func TestParseAddresses_RefusesOtherText(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"":                  `""`,
		"192.0.2.1,":        `""`,
		"192.0.2":           `"192.0.2"`,
		"192.0.2.1:53":      `"192.0.2.1:53"`,
		"www.example.com":   `"www.example.com"`,
		"192.0.2.1;\x00\"":  `"192.0.2.1;??"`,
		"fe80::1%eth0":      "one machine",
		"2001:db8::1 ::2":   `"2001:db8::1 ::2"`,
		"192.0.2.0/24":      `"192.0.2.0/24"`,
		manyAddresses(1000): "more than",
	} {
		if addresses, err := parseAddresses(value); err == nil || !strings.Contains(err.Error(), want) || addresses != nil {
			t.Errorf("%q became %v, %v", value, addresses, err)
		}
	}
}

func manyAddresses(n int) string {
	addresses := make([]netip.Addr, n)
	addresses[0] = netip.MustParseAddr("2001:db8::1")
	for i := range n - 1 {
		addresses[i+1] = addresses[i].Next()
	}
	return formatAddresses(addresses)
}

func TestCheckHost_ReturnsTheLockNameInTheZone(t *testing.T) {
	t.Parallel()
	const zone = "example.com."
	for host, want := range map[string]string{
		"www.example.com":      "www.example.com",
		"WWW.Example.COM.":     "www.example.com",
		"example.com":          "example.com",
		"a.b-c._d.example.com": "a.b-c._d.example.com",
		"ns.example.com":       "ns.example.com",
	} {
		if name, err := checkHost(host, zone); err != nil || name != want {
			t.Errorf("%q became %q, %v, want %q", host, name, err, want)
		}
	}
	for host, want := range map[string]string{
		"":                                       "empty",
		".":                                      "empty",
		"www":                                    "www is not in the zone example.com (www.example.com?)",
		"com":                                    "not in the zone",
		"www.example.org":                        "not in the zone",
		"wwwexample.com":                         "not in the zone",
		"www.example.com..":                      "empty",
		"..example.com":                          "empty",
		"w w.example.com":                        "' ' is not a letter",
		"münchen.example.com":                    "'ü' is not a letter",
		"*.example.com":                          "'*' is not a letter",
		`w\.w.example.com`:                       `'\\' is not a letter`,
		"_locker.www.example.com":                "cannot be registered",
		"a._LOCKER.example.com":                  "cannot be registered",
		strings.Repeat("a", 64) + ".example.com": "overlong",
		strings.Repeat("a.", 130) + "example.com": "overlong",
	} {
		if name, err := checkHost(host, zone); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q became %q, %v, want an error with %q", host, name, err, want)
		}
	}
}

func TestCheckZone_LeavesRoomForTheNameServer(t *testing.T) {
	t.Parallel()
	for zone, want := range map[string]string{"example.com": "example.com.", "Example.COM.": "example.com.", "test": "test."} {
		if got, err := checkZone(zone); err != nil || got != want {
			t.Errorf("%q became %q, %v, want %q", zone, got, err, want)
		}
	}
	long := strings.Join(slices.Repeat([]string{strings.Repeat("a", 61)}, 4), ".")
	for _, zone := range []string{"", ".", "a..b", "a b", long} {
		if got, err := checkZone(zone); err == nil {
			t.Errorf("%q became %q", zone, got)
		}
	}
}
