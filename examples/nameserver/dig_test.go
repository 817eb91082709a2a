package main

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/embedtest"
)

// lookPath returns the path of a program that may be installed. If LOCKER_TOOLS is
// "required", as in the gate, a missing program is a failure.
func lookPath(t *testing.T, name string) (path string, ok bool) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("LOCKER_TOOLS") == "required" {
		t.Fatal(err)
	}
	return path, err == nil
}

func TestAnswers_AreUnderstoodByDig(t *testing.T) {
	t.Parallel()
	dig, ok := lookPath(t, "dig")
	if !ok {
		t.Log("nothing was checked: dig is not installed")
		return
	}
	etcd := embedtest.Start(t)
	client := holdAll(t, etcd, testRecords)
	if _, err := client.Lock(testContext(t), "crowd.example.com", crowdedRecords["crowd.example.com"]); err != nil {
		t.Fatal(err)
	}
	share(t, client, "pool.example.com", "192.0.2.9,2001:db8::9", "192.0.2.8", "192.0.2.9")
	host, port, err := net.SplitHostPort(startServing(t, client, defaults(), t.Output()))
	if err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string][]string{
		"www.example.com":                    {"status: NOERROR", "flags: qr aa;", "www.example.com.\t7\tIN\tA\t192.0.2.1", "192.0.2.2", "udp: 1232", "(UDP)"},
		"www.example.com +tcp":               {"status: NOERROR", "www.example.com.\t7\tIN\tA\t192.0.2.1", "(TCP)"},
		"WWW.example.com AAAA +noedns":       {"WWW.example.com.\t7\tIN\tAAAA\t2001:db8::1", "ADDITIONAL: 0"},
		"pool.example.com":                   {"ANSWER: 2", "pool.example.com.\t7\tIN\tA\t192.0.2.9\npool.example.com.\t7\tIN\tA\t192.0.2.8\n"},
		"_locker.pool.example.com TXT":       {"ANSWER: 3", `"holder=192.0.2.9,2001:db8::9" "token=`, `"holder=192.0.2.8" "token=`, `"holder=192.0.2.9" "token=`},
		"example.com SOA":                    {"ns.example.com. hostmaster.example.com."},
		"example.com NS":                     {"example.com.\t\t7\tIN\tNS\tns.example.com.", "ns.example.com.\t\t7\tIN\tA\t127.0.0.1"},
		"_locker.www.example.com TXT":        {`"holder=192.0.2.1,2001:db8::1,192.0.2.2" "token=`},
		"b.example.com":                      {"status: NOERROR", "ANSWER: 0, AUTHORITY: 1"},
		"nobody.example.com":                 {"status: NXDOMAIN", "AUTHORITY: 1"},
		"www.example.org":                    {"status: REFUSED"},
		"example.com AXFR":                   {"Transfer failed"},
		"version.bind TXT CH":                {"status: REFUSED"},
		"www.example.com ANY +notcp":         {"RFC8482"},
		"www.example.com +opcode=notify":     {"status: NOTIMP"},
		"www.example.com +edns=1 +noednsneg": {"status: BADVERS"},
		"crowd.example.com AAAA +ignore":     {"flags: qr aa tc;"},
		"crowd.example.com AAAA":             {"Truncated, retrying in TCP mode", "ANSWER: 256", "(TCP)"},
	} {
		args := append([]string{"@" + host, "-p", port, "+time=5", "+tries=3", "+norecurse"}, strings.Fields(query)...)
		out, err := exec.CommandContext(testContext(t), dig, args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v", query, err)
		}
		for _, text := range want {
			if !strings.Contains(string(out), text) {
				t.Errorf("%s: no %q in\n%s", query, text, out)
			}
		}
		if strings.Contains(string(out), "WARNING") {
			t.Errorf("%s: dig warns:\n%s", query, out)
		}
	}
}
