package uitest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/browsertest"
)

func TestPage_InABrowser(t *testing.T) {
	t.Parallel()
	b, ok := browsertest.Start(t)
	if !ok {
		return
	}
	for _, test := range []struct {
		name string
		f    func(t *testing.T, b *browsertest.Browser)
	}{
		{"locks come and go", changesAreLive},
		{"a name opens its queue", queueOfAName},
		{"the filter works while one types", filter},
		{"a lock is released once its token is typed", release},
		{"other sites release nothing", otherSites},
		{"everything can be read and used without scripts", withoutScripts},
		{"it reconnects after the server restarts", reconnects},
		{"it is stale while the server or etcd is silent", stale},
		{"a tab that nobody sees has no stream", hidden},
		{"it is readable on phones, in the light and in the dark", appearance},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, b) })
	}
}

// row returns a selector for the row of a name.
func row(name string) string { return fmt.Sprintf(`tr[id="name:%s"]`, url.QueryEscape(name)) }

// cell returns a selector for a cell of it.
func cell(name, label string) string { return fmt.Sprintf(`%s [data-label="%s"]`, row(name), label) }

func isLive(p *browsertest.Tab) { p.AwaitText("#live", "live") }

func changesAreLive(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	orders, reports := client(t, etcd, "orders"), client(t, etcd, "reports")
	p := b.Open(t, serve(t, etcd.Endpoints()).url, false)
	isLive(p)
	p.AwaitText("#headline", "No name is held.")
	l := lock(t, orders, "nightly", "10.0.0.1")
	p.AwaitText("#headline", "1 name is held, and nobody waits.")
	p.AwaitText(cell("nightly", "Program"), "orders")
	p.AwaitText(cell("nightly", "Token"), fmt.Sprint(l.Token()))
	p.Await(`document.querySelector('[id="open:name:nightly"]').focus()`, "undefined")
	for _, name := range []string{"a", "b", "z"} {
		lock(t, orders, name, "v")
	}
	wait(t, reports, "nightly", "10.0.0.2")
	p.AwaitCount("#rows tr", 4)
	p.AwaitText(cell("nightly", "Waiting"), "1")
	p.Await("document.activeElement.id", "open:name:nightly")
	if err := l.SetValue(within(t), "10.0.0.3"); err != nil {
		t.Fatal(err)
	}
	p.AwaitText(cell("nightly", "Value"), "10.0.0.3")
	unlock(t, l)
	p.AwaitText(cell("nightly", "Program"), "reports")
	p.AwaitText("#headline", "4 names are held, and nobody waits.")
	p.Await("document.activeElement.id", "open:name:nightly")
}

func queueOfAName(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	p := b.Open(t, serve(t, etcd.Endpoints()).url+"/?prefix=ni", false)
	l := lock(t, client(t, etcd, "first"), "nightly/1 & 2", "v1")
	p.AwaitCount("#rows tr", 1)
	p.Click(row("nightly/1 & 2") + " a")
	p.AwaitText("#name", "nightly/1 & 2")
	isLive(p)
	p.AwaitText("#summary", "1 holds it, and nobody waits.")
	for i, waiter := range []string{"second", "third"} {
		wait(t, client(t, etcd, waiter), "nightly/1 & 2", "v")
		p.AwaitCount("#rows tr", i+2)
	}
	programs := `[...document.querySelectorAll("#rows .program")].map((e) => e.innerText).join()`
	p.Await(programs, "first,second,third")
	p.AwaitCount("#rows .waits", 2)
	unlock(t, l)
	p.Await(programs, "second,third")
	p.AwaitText("#rows .holds .program", "second")
	p.Await(`[...document.querySelectorAll("#changes li")].slice(0, 2).map((e) => e.className).join()`, "holds,gone")
	p.AwaitCount("#release, .action", 0)
	p.Click("#back a")
	p.Await("location.search", "?prefix=ni")
	p.AwaitCount("#rows tr", 1)
}

func filter(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	c := client(t, etcd, "orders")
	for i := range 60 {
		lock(t, c, fmt.Sprintf("job/%02d", i), "v")
	}
	lock(t, c, "other", "v")
	wait(t, client(t, etcd, "reports"), "other", "v")
	p := b.Open(t, serve(t, etcd.Endpoints()).url, false)
	isLive(p)
	p.AwaitText("#range", "1 to 50 of 61, page 1 of 2")
	p.Click("#next")
	p.AwaitText("#range", "51 to 61 of 61, page 2 of 2")
	isLive(p)
	p.Do(chromedp.SendKeys(chromedp.CSS("#prefix"), "job/1"))
	p.AwaitCount("#rows tr", 10)
	p.AwaitText("#headline", "10 names that begin with job/1 are held, and nobody waits.")
	p.Await("location.search", "?prefix=job%2F1")
	p.Await("document.getElementById('json').getAttribute('href')", "/state.json?prefix=job%2F1")
	p.Await("document.activeElement.id", "prefix")
	lock(t, c, "job/1x", "v")
	p.AwaitCount("#rows tr", 11)
	p.Do(chromedp.SendKeys(chromedp.CSS("#prefix"), "none"))
	p.AwaitText("#empty", "62 other names are held. Show all")
	p.Click("#empty a")
	p.AwaitText("#range", "1 to 50 of 62, page 1 of 2")
	isLive(p)
	p.Await(`(document.getElementById("order").value = "waiting", document.getElementById("order").dispatchEvent(new Event("input", { bubbles: true })))`, true)
	p.AwaitText("#rows tr th", "other")
	p.Await("location.search", "?order=waiting")
}

func release(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	l := lock(t, client(t, etcd, "orders"), "nightly", "v1")
	wait(t, client(t, etcd, "reports"), "nightly", "v2")
	s := serve(t, etcd.Endpoints(), "--allow-release")
	p := b.Open(t, s.url+"/?name=nightly", true) // the answer to a wrong token is an error
	link := fmt.Sprintf(`[id="release:%d"]`, l.Token())
	p.AwaitCount("#rows tr", 2)
	p.Click(link)
	p.AwaitText(".entry dd", "holds, exclusive")
	p.Do(chromedp.SendKeys(chromedp.CSS("#token"), fmt.Sprint(l.Token()+1)))
	p.Click("#release")
	p.AwaitText("#problem", "Nothing was released: what was typed is not the token of this entry.")
	p.Do(chromedp.SendKeys(chromedp.CSS("#token"), fmt.Sprint(l.Token())))
	p.CheckAppearance("release")
	p.Click("#release")
	p.AwaitText("#name", "nightly")
	p.AwaitText("#rows .holds .program", "reports")
	p.Await("[...document.querySelectorAll('#changes .released')].length", 1)
	select {
	case <-l.Context().Done():
	case <-within(t).Done():
		t.Error("the holder has not lost its lock")
	}

	reading := b.Open(t, serve(t, etcd.Endpoints()).url+fmt.Sprintf("/release?name=nightly&token=%d", l.Token()), true)
	reading.AwaitText("#problem", "This page may not release locks; start it with --allow-release.")
}

func otherSites(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	l := lock(t, client(t, etcd, "orders"), "nightly", "v1")
	s := serve(t, etcd.Endpoints(), "--allow-release")
	form := b.Open(t, s.url+fmt.Sprintf("/release?name=nightly&token=%d", l.Token()), false)
	form.AwaitCount("#release", 1)
	secret := form.Text("document.querySelector('[name=secret]').value")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `<!doctype html><link rel="icon" href="data:,"><form method="post" action="%s/release"><input name="name" value="nightly">
<input name="token" value="%d"><input name="secret" value="%s"><button id="send">x</button></form>`, s.url, l.Token(), secret)
	}))
	defer other.Close()
	for _, address := range []string{other.URL, strings.Replace(other.URL, "127.0.0.1", "localhost", 1)} {
		p := b.Open(t, address, true)
		p.Click("#send")
		p.Await("document.body.innerText.includes('cross-origin')", true)
		if err := l.SetValue(within(t), "still held"); err != nil {
			t.Errorf("after a form of %s: %v", address, err)
		}
	}
}

func withoutScripts(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	c := client(t, etcd, "orders")
	l := lock(t, c, "nightly", "v1")
	lock(t, c, "other", "v1")
	s := serve(t, etcd.Endpoints(), "--allow-release")
	p := b.Open(t, s.url, false, browsertest.NoScripts)
	p.AwaitCount("#rows tr", 2)
	p.Await("document.getElementById('live').innerText.startsWith('as of ')", true)
	p.Do(chromedp.SendKeys(chromedp.CSS("#prefix"), "night"))
	p.Click("#apply")
	p.AwaitCount("#rows tr", 1)
	p.Click(row("nightly") + " a")
	p.AwaitText("#name", "nightly")
	p.Click(fmt.Sprintf(`[id="release:%d"]`, l.Token()))
	p.Do(chromedp.SendKeys(chromedp.CSS("#token"), fmt.Sprint(l.Token())))
	p.Click("#release")
	p.AwaitText("#summary", "Nobody holds this name.")
}

func reconnects(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	c := client(t, etcd, "orders")
	lock(t, c, "before", "v")
	s := serve(t, etcd.Endpoints())
	p := b.Open(t, s.url, true)
	isLive(p)
	p.AwaitCount("#rows tr", 1)
	s.stop()
	p.AwaitText("#live", "reconnecting")
	lock(t, c, "meanwhile", "v")
	serve(t, etcd.Endpoints(), "--listen", strings.TrimPrefix(s.url, "http://"))
	isLive(p)
	p.AwaitCount("#rows tr", 2)
}

func stale(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	lock(t, client(t, etcd, "orders"), "nightly", "v")
	toEtcd := etcd.Proxy(t)
	s := serve(t, toEtcd.Endpoints())
	toPage, err := embedtest.NewProxy(s.url)
	if err != nil {
		t.Fatal(err)
	}
	defer toPage.Close()
	p := b.Open(t, toPage.Endpoints()[0], true)
	isLive(p)
	toPage.Freeze()
	p.AwaitText("#live", "stale: no answer from the server, reconnecting")
	p.Await("document.body.dataset.live", "stale")
	p.AwaitCount("#rows tr", 1)
	toPage.Thaw()
	isLive(p)
	toEtcd.Freeze()
	p.AwaitText("#live", "stale: the server gets no answer from etcd")
	p.Screenshot("stale")
	toEtcd.Thaw()
	isLive(p)
}

func hidden(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	c := client(t, etcd, "orders")
	p := b.Open(t, serve(t, etcd.Endpoints()).url, false)
	isLive(p)
	visibility := func(hidden bool) string {
		return fmt.Sprintf(`(Object.defineProperty(document, "hidden", { configurable: true, value: %v }), document.dispatchEvent(new Event("visibilitychange")))`, hidden)
	}
	p.Await(visibility(true), true)
	lock(t, c, "meanwhile", "v")
	p.AwaitCount("#rows tr", 0)
	p.Await(visibility(false), true)
	isLive(p)
	p.AwaitCount("#rows tr", 1)
}

func appearance(t *testing.T, b *browsertest.Browser) {
	etcd := embedtest.Start(t)
	var s server
	fill(t, etcd, func() { s = serve(t, etcd.Endpoints(), "--allow-release") })
	p := b.Open(t, s.url, false)
	isLive(p)
	p.Click("#legend summary")
	p.CheckAppearance("legend")
	p.Do(chromedp.Navigate(s.url + "/?name=" + url.QueryEscape("invoices/2026")))
	isLive(p)
	p.CheckAppearance("queue")
	p.Do(chromedp.Navigate(s.url + "/?name=maintenance"))
	isLive(p)
	p.CheckAppearance("marked")
	p.Do(chromedp.Navigate(s.url))
	isLive(p)
	p.AwaitCount("#rows tr", 13)
	p.CheckAppearance("names")
}

// fill locks what a page may look like, and calls meanwhile in between.
func fill(t *testing.T, etcd *embedtest.Server, meanwhile func()) {
	t.Helper()
	billing, search, worker := client(t, etcd, "billing"), client(t, etcd, "search-indexer"), client(t, etcd, "worker")
	for _, l := range []struct {
		c           *locker.Client
		name, value string
	}{
		{billing, "invoices/2026", "10.1.4.17:8080"}, {billing, "leader/billing", "billing-7f9c4d-x2x8z"}, {billing, "ledger", "10.1.4.17:8080"},
		{search, "index/products", "shard 3 of 8"}, {search, "leader/search", "search-5d6b7-lq9fk"}, {worker, "backup/nightly", "s3://backups/2026-08-05"},
		{worker, "leader/worker", "worker-0"}, {worker, "migrations", ""}, {worker, "www.example.com", "192.0.2.10, 192.0.2.11, 2001:db8::10, 2001:db8::11 and some more text"},
	} {
		lock(t, l.c, l.name, l.value)
	}
	meanwhile()
	lock(t, billing, "report", "reader 1", locker.WithShared())
	lock(t, search, "report", "reader 2", locker.WithShared())
	lock(t, worker, "downloads", "slot", locker.WithLimit(4))
	lock(t, search, "downloads", "slot", locker.WithLimit(4))
	wait(t, search, "invoices/2026", "10.1.4.23:8080")
	wait(t, worker, "invoices/2026", "10.1.4.29:8080")
	wait(t, worker, "leader/search", "search-5d6b7-zzk2w")
	ops := etcd.Client(t)
	lease, err := ops.Grant(within(t), 60)
	if err != nil {
		t.Fatal(err)
	}
	put(t, ops, "locker/maintenance/1", "ask Ann before you remove this")
	put(t, ops, "locker/deploy/1f", "deploy-script", clientv3.WithLease(lease.ID))
}
