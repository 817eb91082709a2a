package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/jagregory/locker/v2/embedtest"
)

// openBrowser starts Chromium. If LOCKER_TOOLS is "required", a missing Chromium is a
// failure.
func openBrowser(t *testing.T) (context.Context, bool) {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	switch {
	case path != "":
	case os.Getenv("LOCKER_TOOLS") == "required":
		t.Fatal("Chromium is not installed (Debian: apt-get install chromium)")
	default:
		t.Log("nothing was checked: Chromium is not installed")
		return nil, false
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true),
		chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("hide-scrollbars", true),
		chromedp.UserDataDir(t.TempDir()))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("Chromium does not start: %v", err)
	}
	t.Cleanup(func() {
		bounded, cancel := context.WithTimeout(ctx, testTimeout)
		defer cancel()
		if err := chromedp.Cancel(bounded); err != nil {
			t.Errorf("Chromium does not exit: %v", err)
		}
	})
	return ctx, true
}

// tab is a page in a browser.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// openTab opens a page. Nothing must be logged to its console, except network errors if
// the server may be offline for a while.
func openTab(t *testing.T, browser context.Context, url string, offline bool, before ...chromedp.Action[chromedp.Void]) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	p := &tab{t, ctx}
	p.do()
	console, stop := context.WithCancel(ctx)
	messages := chromedp.Console(console)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for message, err := range messages {
			switch {
			case console.Err() != nil:
				return
			case err != nil:
				t.Errorf("cannot read the console: %v", err)
			case offline && message.Source == "network":
			default:
				t.Errorf("console message: %v %s", message, message.URL)
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	p.do(before...)
	p.do(chromedp.EmulateViewport(1280, 1000), chromedp.Navigate(url))
	return p
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if p.ctx.Err() != nil {
		p.t.Fatal("the tab is closed")
	}
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// click clicks the element that a selector finds.
func (p *tab) click(selector string) {
	p.t.Helper()
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

// await waits until an expression has the given value.
func (p *tab) await(expression string, want any) {
	p.t.Helper()
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	limit := time.After(testTimeout)
	for {
		got, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("String("+expression+")"))
		if err == nil && got == fmt.Sprint(want) {
			return
		}
		select {
		case <-ticks.C: // a page that is loading may not answer
		case <-limit:
			p.t.Fatalf("%s is %q (%v), want %q", expression, got, err, fmt.Sprint(want))
		}
	}
}

// textOf returns an expression for the text of the first element that a selector finds.
func textOf(selector string) string {
	return fmt.Sprintf("(document.querySelector(%q)?.innerText ?? '').trim()", selector)
}

// countOf returns an expression for the number of elements that a selector finds.
func countOf(selector string) string {
	return fmt.Sprintf("document.querySelectorAll(%q).length", selector)
}

// screenshot saves a screenshot if MESH_SCREENSHOTS names a directory.
func (p *tab) screenshot(name string) {
	p.t.Helper()
	dir := os.Getenv("MESH_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// withColorScheme makes the system light or dark.
func withColorScheme(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	})
}

// noScripts prevents the page from running its scripts.
func noScripts(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
	_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	return chromedp.Void{}, err
}

// lowContrast is an expression for the texts whose contrast with their background is
// below WCAG's level AA.
const lowContrast = `(() => {
	const light = (color) => {
		const [r, g, b] = color.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255)
			.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const behind = (e) => {
		const rect = e.tagName === "text" && e.parentElement.querySelector("rect");
		if (rect) return getComputedStyle(rect).fill;
		for (; e; e = e.parentElement) {
			const color = getComputedStyle(e).backgroundColor;
			if (color !== "rgba(0, 0, 0, 0)") return color;
		}
		return "rgb(255, 255, 255)";
	};
	return [...document.querySelectorAll("body *")]
		.filter((e) => [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()) && e.checkVisibility() && e.tagName !== "title")
		.map((e) => {
			const style = getComputedStyle(e);
			const [a, b] = [light(e.tagName === "text" ? style.fill : style.color), light(behind(e))];
			return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent];
		})
		.filter(([contrast]) => contrast < 4.5).map(([contrast, text]) => contrast.toFixed(1) + " " + text).join("; ");
})()`

// tooWide is an expression for the texts of the graph that do not fit into their boxes.
const tooWide = `[...document.querySelectorAll("#graph text")]
	.filter((e) => e.getBBox().width > e.parentElement.querySelector("rect").getBBox().width - 4)
	.map((e) => e.textContent + " " + e.getBBox().width).join("; ")`

// checkAppearance takes screenshots in both colour schemes, and checks the contrast, and
// the layout on a phone.
func (p *tab) checkAppearance(name string) {
	p.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		p.do(withColorScheme(scheme))
		p.await(fmt.Sprintf("matchMedia('(prefers-color-scheme: %s)').matches", scheme), true)
		p.await(lowContrast, "")
		p.await(tooWide, "")
		p.screenshot(name + "-" + scheme)
	}
	for _, width := range []int64{320, 360, 700} {
		p.do(chromedp.EmulateViewport(width, 780, chromedp.EmulateMobile))
		p.await("innerWidth", width)
		p.await("document.documentElement.scrollWidth <= innerWidth", true)
		p.screenshot(fmt.Sprintf("%s-%d", name, width))
	}
	p.do(chromedp.EmulateViewport(1280, 1000), withColorScheme("light"))
	p.await("document.documentElement.scrollWidth <= innerWidth", true)
}

func TestPage_InABrowser(t *testing.T) {
	t.Parallel()
	browser, ok := openBrowser(t)
	if !ok {
		return
	}
	out, _ := startInProcess(t, "-listen", "127.0.0.1:0", "-quiet")
	url := pageURL(t, out)
	for _, test := range []struct {
		name string
		f    func(t *testing.T, browser context.Context, url string)
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

func oneClickShowsTheCascade(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false)
	p.await("document.getElementById('live').dataset.live", "live")
	p.await(countOf("#services > .up"), 12)
	p.await(textOf(".sentence"), "All 12 services are up.")
	p.checkAppearance("before")

	p.click("#health-database")
	p.await(textOf("#service-database .badge"), "✕ down")
	p.await(textOf("#service-database .reason"), "down: not ready")
	p.await(textOf("#service-shop .reason"), "down because of database")
	p.await(textOf("#service-search .badge"), "! degraded")
	p.await(textOf("#service-search .reason"), "degraded because of database")
	p.await(countOf("#services > .down"), 7)
	p.await(countOf("#graph a.down"), 7)
	p.await(countOf("#services > .up"), 3)
	p.await(textOf(".sentence"), "database is down, and 6 more because of it.")
	p.await("[...document.querySelectorAll('#log tr')].some(r => r.innerText.includes('shop down because of database'))", true)
	p.await("document.activeElement.id", "health-database")
	p.checkAppearance("blackout")

	p.click("#health-database")
	p.await(countOf("#services > .up"), 12)
	p.await(textOf("#service-shop .reason"), "stops when a dependency is down")
}

func disconnectAService(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false)
	p.click("#link-queue")
	p.await(textOf("#link-queue"), "reconnect")
	p.await(textOf("#service-stock .reason"), "down because of queue")
	p.await(textOf("#service-queue .reason"), "down: not ready")
	p.click("#link-queue")
	p.await(countOf("#services > .up"), 12)
}

func focusStays(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false)
	p.await(textOf("#live"), "live")
	for _, id := range []string{"box:mail", "need:mail:queue"} {
		focused := "document.activeElement.id"
		p.await(fmt.Sprintf("(document.getElementById(%q).focus(), %s)", id, focused), id)
		for fault, badge := range map[string]string{"unhealthy": "✕ down", "healthy": "✓ up"} {
			p.await(fmt.Sprintf("(fetch('/services/mail/%s', {method: 'POST', redirect: 'manual'}), true)", fault), true)
			p.await(textOf("#service-mail .badge"), badge)
			p.await(focused, id)
		}
	}
}

func neverAnswered(t *testing.T, browser context.Context) {
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
	p := openTab(t, browser, server.URL, true)
	p.await(textOf("#live"), "connecting")
	p.await(textOf("#live"), "live")
	if n := streams.Load(); n < 2 {
		t.Errorf("the page is live after %d streams", n)
	}
}

func withoutScripts(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false, noScripts)
	// The expressions below are not the page's own scripts.
	p.await(countOf("#services > .up"), 12)
	p.await(countOf("#graph a"), 12)
	p.await("document.getElementById('live').innerText.startsWith('as of ')", true)
	p.click("#health-storage")
	p.await("location.hash", "#service-storage")
	p.await(textOf("#health-storage"), "make healthy")
	p.click("#health-storage")
	p.await(textOf("#health-storage"), "make unhealthy")
	p.await(countOf("#services > .up"), 12) // the page returned by the click was rendered before the settle time had passed
}

func staleWhileSilent(t *testing.T, browser context.Context, url string) {
	proxy, err := embedtest.NewProxy(url)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	p := openTab(t, browser, proxy.Endpoints()[0], true)
	p.await(textOf("#live"), "live")
	proxy.Freeze()
	p.await("document.body.dataset.live", "stale")
	p.screenshot("stale")
	proxy.Thaw()
	p.await(textOf("#live"), "live")
}

func reconnects(t *testing.T, browser context.Context) {
	server := embedtest.Start(t)
	endpoints := strings.Join(server.Endpoints(), ",")
	out, stop := startInProcess(t, "dashboard", "-endpoints", endpoints, "-listen", "127.0.0.1:0")
	url := pageURL(t, out)
	p := openTab(t, browser, url, true)
	p.await(textOf("#live"), "live")
	p.await(textOf("#services code"), "mesh node")
	startInProcess(t, "node", "-endpoints", endpoints, "-name", "service-b", "-needs", "management")
	p.await(textOf("#service-service-b .badge"), "! degraded")
	p.await(textOf("#service-management .badge"), "? never seen")
	p.checkAppearance("few")
	stop()
	p.await(textOf("#live"), "reconnecting")
	startInProcess(t, "dashboard", "-endpoints", endpoints, "-listen", strings.TrimPrefix(url, "http://"))
	p.await(textOf("#live"), "live")
	startInProcess(t, "node", "-endpoints", endpoints, "-name", "management")
	p.await(textOf("#service-service-b .badge"), "✓ up")
	p.await(countOf("#log tr"), 4) // only the new server's: both services as it found them, and both up
}
