package main

import (
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestCompletion_PrintsAScriptForEachShell(t *testing.T) {
	t.Parallel()
	for shell, sign := range map[string]string{"bash": "complete -o default", "zsh": "#compdef locker", "fish": "complete -c locker"} {
		if got := callWith(t, nil, "completion", shell).want(t, 0); !strings.Contains(got.stdout, sign) {
			t.Errorf("%s: no %q", shell, sign)
		}
	}
}

func TestCompletion_HasTheNamesThatAreHeld(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := worker(t, b)
	locktest.Lock(t, c, "www.a", "")
	locktest.Lock(t, c, "www.b", "")
	locktest.Lock(t, c, "other", "")
	for _, name := range []string{"www.\u009bc", "www.$(x)a", "www.`x`", "www.a b", "www.a;x", "www.*", "www.~", "www.'", `www."`, `www.\`, "www.ä"} {
		locktest.PutKey(t, b.Etcd, "locker/"+name+"/1", "")
	}
	endpoint := b.Server.Endpoints()[0]
	for _, command := range []string{"get", "ls", "watch", "queue", "force-unlock"} {
		got := callWith(t, nil, "__complete", command, "--endpoints", endpoint, "--dial-timeout", "1m", "www.")
		if got.code != 0 || got.stdout != "www.a\nwww.b\n:4\n" {
			t.Errorf("%s: exit code %d, %q", command, got.code, got.stdout)
		}
		if got := callWith(t, nil, "__complete", command, "--endpoints", endpoint, "www.a", ""); got.stdout != ":4\n" {
			t.Errorf("%s: a second name: %q", command, got.stdout)
		}
	}
	if got := callWith(t, nil, "__complete", "get", "-o", ""); got.stdout != "table\nwide\njson\n:4\n" {
		t.Errorf("formats: %q", got.stdout)
	}
}

func TestCompletion_OffersNothingThatAShellWouldObey(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, name := range []string{"$(x)a", "=ls", "-x", "~", "a"} {
		locktest.PutKey(t, b.Etcd, "locker/"+name+"/1", "")
	}
	if got := callWith(t, nil, "__complete", "get", "--endpoints", b.Server.Endpoints()[0], "--dial-timeout", "1m", ""); got.stdout != "a\n:4\n" {
		t.Errorf("offered %q", got.stdout)
	}
}

func TestCompletion_HasTheCommandsThatHelpExplains(t *testing.T) {
	t.Parallel()
	if got := callWith(t, nil, "__complete", "help", "que"); got.stdout != "queue\tList everybody who holds a name or waits for it, in order\n:4\n" {
		t.Errorf("offered %q", got.stdout)
	}
}

func TestCompletion_TakesTheAddressFromTheEnvironment(t *testing.T) {
	b := locktest.Setup(t)
	locktest.Lock(t, worker(t, b), "a", "")
	t.Setenv("ETCDCTL_ENDPOINTS", b.Server.Endpoints()[0])
	if got := callWith(t, nil, "__complete", "get", ""); got.stdout != "a\n:4\n" {
		t.Errorf("%q", got.stdout)
	}
}

func TestCompletion_DoesNotWaitForAnEtcdThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	proxy.Freeze()
	began := time.Now()
	got := callWith(t, nil, "__complete", "get", "--endpoints", proxy.Endpoints()[0], "--dial-timeout", "1m", "")
	soon(t, began)
	if got.code != 0 || got.stdout != ":4\n" {
		t.Errorf("exit code %d, %q", got.code, got.stdout)
	}
}
