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

// openBrowser starts Chromium. Where LOCKER_TOOLS is "required" it has to be there.
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
		t.Fatal("there is no Chromium (Debian: apt-get install chromium)")
	default:
		t.Log("there is no Chromium, so nothing is known of the page in a browser")
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
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if err := chromedp.Cancel(bounded); err != nil {
			t.Errorf("Chromium does not end: %v", err)
		}
	})
	return ctx, true
}

// tab is a page in a browser.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// openTab opens a page, whose console must stay empty. That the server is not there is
// in order if it is offline for a while.
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
				t.Errorf("the console cannot be read: %v", err)
			case offline && message.Source == "network":
			default:
				t.Errorf("in the console: %v %s", message, message.URL)
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

// click clicks on what a selector finds.
func (p *tab) click(selector string) {
	p.t.Helper()
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

// await waits until an expression is what it should be.
func (p *tab) await(expression string, want any) {
	p.t.Helper()
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	limit := time.After(patience)
	for {
		got, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("String("+expression+")"))
		if err == nil && got == fmt.Sprint(want) {
			return
		}
		select {
		case <-ticks.C: // a page that is being loaded may not answer
		case <-limit:
			p.t.Fatalf("%s is %q (%v), want %q", expression, got, err, fmt.Sprint(want))
		}
	}
}

// text is an expression for the text of the first element that a selector finds.
func text(selector string) string {
	return fmt.Sprintf("(document.querySelector(%q)?.innerText ?? '').trim()", selector)
}

// number is an expression for how many elements a selector finds.
func number(selector string) string {
	return fmt.Sprintf("document.querySelectorAll(%q).length", selector)
}

// picture keeps a screenshot, if MESH_SCREENSHOTS is a folder.
func (p *tab) picture(name string) {
	p.t.Helper()
	folder := os.Getenv("MESH_SCREENSHOTS")
	if folder == "" {
		return
	}
	png, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, name+".png"), png, 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// inScheme lets the system be light or dark.
func inScheme(name string) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	})
}

// noScripts keeps the page from running its scripts.
func noScripts(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
	_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	return chromedp.Void{}, err
}

// faint is an expression for the texts with less contrast to what is behind them than
// WCAG's level AA asks for.
const faint = `(() => {
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

// tooWide is an expression for the texts of the graph that do not fit their boxes.
const tooWide = `[...document.querySelectorAll("#graph text")]
	.filter((e) => e.getBBox().width > e.parentElement.querySelector("rect").getBBox().width - 4)
	.map((e) => e.textContent + " " + e.getBBox().width).join("; ")`

// looks takes pictures in both schemes and checks the contrast, and the layout on a phone.
func (p *tab) looks(name string) {
	p.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		p.do(inScheme(scheme))
		p.await(fmt.Sprintf("matchMedia('(prefers-color-scheme: %s)').matches", scheme), true)
		p.await(faint, "")
		p.await(tooWide, "")
		p.picture(name + "-" + scheme)
	}
	for _, width := range []int64{320, 360, 700} {
		p.do(chromedp.EmulateViewport(width, 780, chromedp.EmulateMobile))
		p.await("innerWidth", width)
		p.await("document.documentElement.scrollWidth <= innerWidth", true)
		p.picture(fmt.Sprintf("%s-%d", name, width))
	}
	p.do(chromedp.EmulateViewport(1280, 1000), inScheme("light"))
	p.await("document.documentElement.scrollWidth <= innerWidth", true)
}

func TestThePageInABrowser(t *testing.T) {
	t.Parallel()
	browser, ok := openBrowser(t)
	if !ok {
		return
	}
	out, _ := start(t, "-listen", "127.0.0.1:0", "-quiet")
	url := address(t, out)
	for _, test := range []struct {
		name string
		f    func(t *testing.T, browser context.Context, url string)
	}{
		{"one click shows the cascade and the recovery", oneClickShowsTheCascade},
		{"a service that is cut off goes down and comes back", cutOffInTheBrowser},
		{"it can be read and used without scripts", withoutScripts},
		{"the focus stays where it is", focusStays},
		{"it is stale while the stream is silent", staleWhileSilent},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, browser, url) })
	}
	t.Run("it gives up a stream that is never answered", func(t *testing.T) { neverAnswered(t, browser) })
	t.Run("it reconnects after the server was restarted", func(t *testing.T) { reconnects(t, browser) })
}

func oneClickShowsTheCascade(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false)
	p.await("document.getElementById('live').dataset.live", "live")
	p.await(number("#services > .up"), 12)
	p.await(text(".sentence"), "All 12 services are up.")
	p.looks("before")

	p.click("#health-database")
	p.await(text("#service-database .badge"), "✕ down")
	p.await(text("#service-database .reason"), "down by itself")
	p.await(text("#service-shop .reason"), "down because database")
	p.await(text("#service-search .badge"), "! degraded")
	p.await(text("#service-search .reason"), "degraded because database")
	p.await(number("#services > .down"), 7)
	p.await(number("#graph a.down"), 7)
	p.await(number("#services > .up"), 3)
	p.await(text(".sentence"), "database is down, and because of that 6 more.")
	p.await("[...document.querySelectorAll('#log tr')].some(r => r.innerText.includes('shop down because database'))", true)
	p.await("document.activeElement.id", "health-database")
	p.looks("blackout")

	p.click("#health-database")
	p.await(number("#services > .up"), 12)
	p.await(text("#service-shop .reason"), "goes down with what it needs")
}

func cutOffInTheBrowser(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false)
	p.click("#link-queue")
	p.await(text("#link-queue"), "connect again")
	p.await(text("#service-stock .reason"), "down because queue")
	p.await(text("#service-queue .reason"), "down by itself")
	p.click("#link-queue")
	p.await(number("#services > .up"), 12)
}

func focusStays(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false)
	p.await(text("#live"), "live")
	for _, id := range []string{"box:mail", "need:mail:queue"} {
		focused := "document.activeElement.id"
		p.await(fmt.Sprintf("(document.getElementById(%q).focus(), %s)", id, focused), id)
		for fault, badge := range map[string]string{"unhealthy": "✕ down", "healthy": "✓ up"} {
			p.await(fmt.Sprintf("(fetch('/services/mail/%s', {method: 'POST', redirect: 'manual'}), true)", fault), true)
			p.await(text("#service-mail .badge"), badge)
			p.await(focused, id)
		}
	}
}

func neverAnswered(t *testing.T, browser context.Context) {
	e := newExhibit(t, 0)
	var streams atomic.Int64
	inner := e.handler()
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
	p.await(text("#live"), "connecting")
	p.await(text("#live"), "live")
	if n := streams.Load(); n < 2 {
		t.Errorf("it is live after %d streams", n)
	}
}

func withoutScripts(t *testing.T, browser context.Context, url string) {
	p := openTab(t, browser, url, false, noScripts)
	// What is evaluated here is not the page's own script.
	p.await(number("#services > .up"), 12)
	p.await(number("#graph a"), 12)
	p.await("document.getElementById('live').innerText.startsWith('as of ')", true)
	p.click("#health-storage")
	p.await("location.hash", "#service-storage")
	p.await(text("#health-storage"), "make healthy")
	p.click("#health-storage")
	p.await(text("#health-storage"), "make unhealthy")
	p.await(number("#services > .up"), 12) // the page that came back at once was of before the settle time
}

func staleWhileSilent(t *testing.T, browser context.Context, url string) {
	proxy, err := embedtest.NewProxy(url)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	p := openTab(t, browser, proxy.Endpoints()[0], true)
	p.await(text("#live"), "live")
	proxy.Freeze()
	p.await("document.body.dataset.live", "stale")
	p.picture("stale")
	proxy.Thaw()
	p.await(text("#live"), "live")
}

func reconnects(t *testing.T, browser context.Context) {
	server := embedtest.Start(t)
	endpoints := strings.Join(server.Endpoints(), ",")
	out, stop := start(t, "dashboard", "-endpoints", endpoints, "-listen", "127.0.0.1:0")
	url := address(t, out)
	p := openTab(t, browser, url, true)
	p.await(text("#live"), "live")
	p.await(text("#services code"), "mesh node")
	start(t, "node", "-endpoints", endpoints, "-name", "service-b", "-needs", "management")
	p.await(text("#service-service-b .badge"), "! degraded")
	p.await(text("#service-management .badge"), "? never seen")
	p.looks("few")
	stop()
	p.await(text("#live"), "reconnecting")
	start(t, "dashboard", "-endpoints", endpoints, "-listen", strings.TrimPrefix(url, "http://"))
	p.await(text("#live"), "live")
	start(t, "node", "-endpoints", endpoints, "-name", "management")
	p.await(text("#service-service-b .badge"), "✓ up")
	p.await(number("#log tr"), 4) // only the new server's: both as it found them, and both up
}
