// Package browsertest tests pages in a headless Chromium.
package browsertest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// timeout bounds every wait.
const timeout = 2 * time.Minute

// Browser is a running Chromium.
type Browser struct{ ctx context.Context }

// An Action is something that a tab does.
type Action = chromedp.Action[chromedp.Void]

// Start starts Chromium. If LOCKER_TOOLS is "required", a missing Chromium is a
// failure.
func Start(t *testing.T) (*Browser, bool) {
	t.Helper()
	path := find()
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
		bounded, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if err := chromedp.Cancel(bounded); err != nil {
			t.Errorf("Chromium does not exit: %v", err)
		}
	})
	return &Browser{ctx}, true
}

// find returns the path of Chromium, "" if it is not installed.
func find() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// Tab is a page in a browser.
type Tab struct {
	t   *testing.T
	ctx context.Context
}

// Open opens a page. Nothing must be logged to its console, except network errors if
// the server may be offline for a while.
func (b *Browser) Open(t *testing.T, url string, offline bool, before ...Action) *Tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	p := &Tab{t, ctx}
	p.Do()
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
	p.Do(before...)
	p.Do(chromedp.EmulateViewport(1280, 1000), chromedp.Navigate(url))
	return p
}

// Do performs actions.
func (p *Tab) Do(actions ...Action) {
	p.t.Helper()
	if p.ctx.Err() != nil {
		p.t.Fatal("the tab is closed")
	}
	if err := chromedp.Do(p.ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// Click clicks the element that a selector finds.
func (p *Tab) Click(selector string) {
	p.t.Helper()
	p.Do(chromedp.Click(chromedp.CSS(selector)))
}

// Await waits until an expression has the given value.
func (p *Tab) Await(expression string, want any) {
	p.t.Helper()
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	limit := time.After(timeout)
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

// AwaitText waits until the text of the first element that a selector finds is the given one.
func (p *Tab) AwaitText(selector, want string) {
	p.t.Helper()
	p.Await(TextOf(selector), want)
}

// AwaitCount waits until a selector finds so many elements.
func (p *Tab) AwaitCount(selector string, want int) {
	p.t.Helper()
	p.Await(CountOf(selector), want)
}

// Text returns the value of an expression.
func (p *Tab) Text(expression string) string {
	p.t.Helper()
	text, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// TextOf returns an expression for the text of the first element that a selector finds.
func TextOf(selector string) string {
	return fmt.Sprintf("(document.querySelector(%q)?.innerText ?? '').trim()", selector)
}

// CountOf returns an expression for the number of elements that a selector finds.
func CountOf(selector string) string {
	return fmt.Sprintf("document.querySelectorAll(%q).length", selector)
}

// Screenshot saves a screenshot if PAGE_SCREENSHOTS names a directory.
func (p *Tab) Screenshot(name string) {
	p.t.Helper()
	dir := os.Getenv("PAGE_SCREENSHOTS")
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

// ColorScheme makes the system light or dark.
func ColorScheme(name string) Action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}},
		})
		return err
	})
}

// NoScripts prevents the page from running its scripts.
func NoScripts(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
	_, err := cdp.Call(ctx, t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	return chromedp.Void{}, err
}

// LowContrast is an expression for the texts whose contrast with their background is
// below WCAG's level AA.
const LowContrast = `(() => {
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

// CheckAppearance takes screenshots in both colour schemes, and checks the contrast, and
// the layout on a phone. The expressions none have to be empty texts.
func (p *Tab) CheckAppearance(name string, none ...string) {
	p.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		p.Do(ColorScheme(scheme))
		p.Await(fmt.Sprintf("matchMedia('(prefers-color-scheme: %s)').matches", scheme), true)
		p.Await(LowContrast, "")
		for _, problems := range none {
			p.Await(problems, "")
		}
		p.Screenshot(name + "-" + scheme)
	}
	for _, width := range []int64{320, 360, 700} {
		p.Do(chromedp.EmulateViewport(width, 780, chromedp.EmulateMobile))
		p.Await("innerWidth", width)
		p.Await("document.documentElement.scrollWidth <= innerWidth", true)
		p.Screenshot(fmt.Sprintf("%s-%d", name, width))
	}
	p.Do(chromedp.EmulateViewport(1280, 1000), ColorScheme("light"))
	p.Await("document.documentElement.scrollWidth <= innerWidth", true)
}
