package main

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestUI_PrintsTheAddressOfItsPageAndServesIt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, b.Client(t), "backup", "db1")
	p := start(t, "ui", "--endpoints", strings.Join(b.Server.Endpoints(), ","), "--dial-timeout", "1m", "--listen", "127.0.0.1:0")
	match := regexp.MustCompile(`^The page is at (http://127\.0\.0\.1:\d+)/$`).FindStringSubmatch(p.line(t))
	if match == nil {
		t.Fatal("the first line has no address")
	}
	for path, want := range map[string]string{"/": ">backup</a>", "/state.json": `"name": "backup"`, "/healthz": `"healthy": true`} {
		transport := &http.Transport{DisableKeepAlives: true}
		req, err := http.NewRequestWithContext(locktest.Within(t), "GET", match[1]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d, %v, %s", path, resp.StatusCode, err, text)
		}
		_ = resp.Body.Close()
	}
	p.wantInterrupted(t)
}

func TestUI_RefusesAnAddressThatItCannotListenOn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, address := range []string{"127.0.0.1", "127.0.0.1:99999", strings.TrimPrefix(b.Server.Endpoints()[0], "http://")} {
		if o := call(t, b, "ui", "--listen", address).want(t, exitUsage); !strings.Contains(o.stderr, "--listen") {
			t.Errorf("%s: %s", address, o.stderr)
		}
	}
}

func TestUI_SaysWhyThereIsNoEtcd(t *testing.T) {
	t.Parallel()
	o := callWith(t, strings.NewReader(""), "ui", "--endpoints", "127.0.0.1:1", "--dial-timeout", "1s", "--listen", "127.0.0.1:0").want(t, exitFailed)
	if !strings.Contains(o.stderr, "127.0.0.1:1") || o.stdout != "" {
		t.Errorf("%+v", o)
	}
}
