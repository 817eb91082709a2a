package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/browsertest"
)

// tooWide is an expression for the texts of the graph that do not fit into their boxes.
const tooWide = `[...document.querySelectorAll("#graph text")]
	.filter((e) => e.getBBox().width > e.parentElement.querySelector("rect").getBBox().width - 4)
	.map((e) => e.textContent + " " + e.getBBox().width).join("; ")`

func TestPage_InABrowser(t *testing.T) {
	t.Parallel()
	browser, ok := browsertest.Start(t)
	if !ok {
		return
	}
	out, _ := startInProcess(t, "-listen", "127.0.0.1:0", "-quiet")
	url := pageURL(t, out)
	for _, test := range []struct {
		name string
		f    func(t *testing.T, browser *browsertest.Browser, url string)
	}{
		{"one click shows the cascade and the recovery", oneClickShowsTheCascade},
		{"a disconnected service goes down and comes back", disconnectAService},
		{"the page can be read and used without scripts", withoutScripts},
		{"updates preserve the focus", focusStays},
		{"the page is stale while the stream is silent", staleWhileSilent},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, browser, url) })
	}
	t.Run("a stream that is never answered is replaced", func(t *testing.T) { neverAnswered(t, browser) })
	t.Run("the page reconnects after the server restarts", func(t *testing.T) { reconnects(t, browser) })
}

func oneClickShowsTheCascade(t *testing.T, browser *browsertest.Browser, url string) {
	p := browser.Open(t, url, false)
	p.Await("document.getElementById('live').dataset.live", "live")
	p.AwaitCount("#services > .up", 12)
	p.AwaitText(".sentence", "All 12 services are up.")
	p.CheckAppearance("before", tooWide)

	p.Click("#health-database")
	p.AwaitText("#service-database .badge", "✕ down")
	p.AwaitText("#service-database .reason", "down: not ready")
	p.AwaitText("#service-shop .reason", "down because of database")
	p.AwaitText("#service-search .badge", "! degraded")
	p.AwaitText("#service-search .reason", "degraded because of database")
	p.AwaitCount("#services > .down", 7)
	p.AwaitCount("#graph a.down", 7)
	p.AwaitCount("#services > .up", 3)
	p.AwaitText(".sentence", "database is down, and 6 more because of it.")
	p.Await("[...document.querySelectorAll('#log tr')].some(r => r.innerText.includes('shop down because of database'))", true)
	p.Await("document.activeElement.id", "health-database")
	p.CheckAppearance("blackout", tooWide)

	p.Click("#health-database")
	p.AwaitCount("#services > .up", 12)
	p.AwaitText("#service-shop .reason", "stops when a dependency is down")
}

func disconnectAService(t *testing.T, browser *browsertest.Browser, url string) {
	p := browser.Open(t, url, false)
	p.Click("#link-queue")
	p.AwaitText("#link-queue", "reconnect")
	p.AwaitText("#service-stock .reason", "down because of queue")
	p.AwaitText("#service-queue .reason", "down: not ready")
	p.Click("#link-queue")
	p.AwaitCount("#services > .up", 12)
}

func focusStays(t *testing.T, browser *browsertest.Browser, url string) {
	p := browser.Open(t, url, false)
	p.AwaitText("#live", "live")
	for _, id := range []string{"box:mail", "need:mail:queue"} {
		focused := "document.activeElement.id"
		p.Await(fmt.Sprintf("(document.getElementById(%q).focus(), %s)", id, focused), id)
		for fault, badge := range map[string]string{"unhealthy": "✕ down", "healthy": "✓ up"} {
			p.Await(fmt.Sprintf("(fetch('/services/mail/%s', {method: 'POST', redirect: 'manual'}), true)", fault), true)
			p.AwaitText("#service-mail .badge", badge)
			p.Await(focused, id)
		}
	}
}

func neverAnswered(t *testing.T, browser *browsertest.Browser) {
	d := newTestDashboard(t, 0)
	var streams atomic.Int64
	inner := d.handler()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" && streams.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	p := browser.Open(t, server.URL, true)
	p.AwaitText("#live", "connecting")
	p.AwaitText("#live", "live")
	if n := streams.Load(); n < 2 {
		t.Errorf("the page is live after %d streams", n)
	}
}

func withoutScripts(t *testing.T, browser *browsertest.Browser, url string) {
	p := browser.Open(t, url, false, browsertest.NoScripts)
	// The expressions below are not the page's own scripts.
	p.AwaitCount("#services > .up", 12)
	p.AwaitCount("#graph a", 12)
	p.Await("document.getElementById('live').innerText.startsWith('as of ')", true)
	p.Click("#health-storage")
	p.Await("location.hash", "#service-storage")
	p.AwaitText("#health-storage", "make healthy")
	p.Click("#health-storage")
	p.AwaitText("#health-storage", "make unhealthy")
	p.AwaitCount("#services > .up", 12) // the page returned by the click was rendered before the settle time had passed
}

func staleWhileSilent(t *testing.T, browser *browsertest.Browser, url string) {
	proxy, err := embedtest.NewProxy(url)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	p := browser.Open(t, proxy.Endpoints()[0], true)
	p.AwaitText("#live", "live")
	proxy.Freeze()
	p.Await("document.body.dataset.live", "stale")
	p.Screenshot("stale")
	proxy.Thaw()
	p.AwaitText("#live", "live")
}

func reconnects(t *testing.T, browser *browsertest.Browser) {
	server := embedtest.Start(t)
	endpoints := strings.Join(server.Endpoints(), ",")
	out, stop := startInProcess(t, "dashboard", "-endpoints", endpoints, "-listen", "127.0.0.1:0")
	url := pageURL(t, out)
	p := browser.Open(t, url, true)
	p.AwaitText("#live", "live")
	p.AwaitText("#services code", "mesh node")
	startInProcess(t, "node", "-endpoints", endpoints, "-name", "service-b", "-needs", "management")
	p.AwaitText("#service-service-b .badge", "! degraded")
	p.AwaitText("#service-management .badge", "? never seen")
	p.CheckAppearance("few", tooWide)
	stop()
	p.AwaitText("#live", "reconnecting")
	startInProcess(t, "dashboard", "-endpoints", endpoints, "-listen", strings.TrimPrefix(url, "http://"))
	p.AwaitText("#live", "live")
	startInProcess(t, "node", "-endpoints", endpoints, "-name", "management")
	p.AwaitText("#service-service-b .badge", "✓ up")
	p.AwaitCount("#log tr", 4) // only the new server's: both services as it found them, and both up
}
