package ui_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/ui"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func wantIn(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in the page:\n%s", part, text)
		}
	}
}

func wantNotIn(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if strings.Contains(text, part) {
			t.Errorf("%q is in the page:\n%s", part, text)
		}
	}
}

func TestPage_ShowsEachNameInARowWithoutScripts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.lock(t, "backup", "<script>alert(1)</script>")
	b.wait(t, "backup", "next")
	b.lock(t, "report", "a", locker.WithShared())
	b.lock(t, "slots", "a", locker.WithLimit(4))
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 3 && s.Names[0].Waiters == 1 })
	page := get(t, b.url+"/")
	if page.status != 200 || page.header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("status %d, %v", page.status, page.header)
	}
	wantIn(t, page.text,
		"3 names are held, and 1 waits for 1 of them.",
		`<a id="open:name:backup" href="/?name=backup">backup</a>`,
		"&lt;script&gt;alert(1)", fmt.Sprint(l.Token()), ">orders<", ">exclusive<", ">shared<", ">limit 4<", ">1 of 4<", "of 60 s</td>",
		`<noscript><meta http-equiv="refresh"`)
	wantNotIn(t, page.text, "<script>", "style=", "onclick", "ZgotmplZ", "secret", "Release")
}

func TestPage_FiltersByPrefixAndShowsOnePageAtATime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 120 {
		b.lock(t, fmt.Sprintf("a/%03d", i), "v")
	}
	b.lock(t, "b & c", "v")
	b.wait(t, "b & c", "v")
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 121 && s.Names[120].Waiters == 1 })
	second := get(t, b.url+"/?prefix=a/&page=2").text
	wantIn(t, second, "120 names that begin with a/ are held, and nobody waits.", "51 to 100 of 120, page 2 of 3", `value="a/"`,
		`href="/?page=3&amp;prefix=a%2F"`, `href="/?prefix=a%2F"`, ">a/050<", ">a/099<", `href="/?name=a%2F050&amp;page=2&amp;prefix=a%2F"`)
	wantNotIn(t, second, ">a/049<", ">a/100<", ">b &amp; c<")
	wantIn(t, get(t, b.url+"/?prefix=a/&page=99").text, "101 to 120 of 120, page 3 of 3")
	wantIn(t, get(t, b.url+"/?prefix=b+%26").text, "1 name that begins with b &amp; is held, and 1 waits for 1 of them.", ">b &amp; c<")
	wantIn(t, get(t, b.url+"/?prefix=none").text, "No name that begins with none is held.", "121 other names are held.")
	first, rest, _ := strings.Cut(get(t, b.url+"/?order=waiting").text, "</tr>\n<tr")
	if wantIn(t, rest, ">a/000<"); !strings.Contains(first+rest[:400], ">b &amp; c<") {
		t.Errorf("what is waited for most is not first:\n%s", first)
	}
	for query, want := range map[string]int{"?prefix=a/": 120, "?prefix=a/&page=3": 20, "?prefix=a/11": 10, "?page=2": 50, "?prefix=x": 0} {
		if s := b.state(t, query); len(s.Names) != want {
			t.Errorf("%s: %d names, want %d", query, len(s.Names), want)
		}
	}
}

func TestPage_ANameShowsItsQueueAndItsLastChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.lock(t, "backup", "first")
	b.wait(t, "backup", "second")
	b.eventually(t, "?name=backup", func(s state) bool { return len(s.Names) == 1 && len(s.Names[0].Queue) == 2 })
	page := get(t, b.url+"/?name=backup&prefix=ba").text
	wantIn(t, page, "1 holds it, and 1 waits.", "← all names", `href="/?prefix=ba"`, ">first<", ">second<", ">holds<", ">waits<",
		fmt.Sprintf("%x", locktest.LeaseOf(first)))
	if strings.Index(page, ">first<") > strings.Index(page, ">second<") {
		t.Error("the queue is not in order")
	}
	locktest.Unlock(t, first)
	b.eventually(t, "?name=backup", func(s state) bool { return len(s.Names) == 1 && s.Names[0].Holders[0].Value == "second" })
	s := b.state(t, "?name=backup")
	holder := s.Names[0].Holders[0]
	if !holder.Exact || holder.Kind != "exclusive" || holder.TTL == nil || holder.Owner == nil || holder.Owner.Program != "reports" {
		t.Errorf("the holder: %+v", holder)
	}
	if n := len(s.Changes); n < 2 || s.Changes[0].What != "holds" || s.Changes[0].Token != holder.Token || s.Changes[1].What != "gone" || s.Changes[1].Token != first.Token() {
		t.Errorf("the changes: %+v", s.Changes)
	}
	wantIn(t, get(t, b.url+"/?name=backup").text, "no longer held by token "+fmt.Sprint(first.Token()), "held by token "+fmt.Sprint(holder.Token))
	wantIn(t, get(t, b.url+"/?name=other").text, "Nobody holds this name.", "None since this page began to watch.")
}

func TestPage_SinceIsAtLeastWhatItHasSeen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.lock(t, "early", "v")
	b.url = b.serve(t)
	b.lock(t, "late", "v")
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 2 })
	if s := b.state(t, ""); s.Names[0].Holders[0].Exact || !s.Names[1].Holders[0].Exact {
		t.Errorf("%+v", s.Names)
	}
	wantIn(t, get(t, b.url+"/?prefix=early").text, `">≥ `)
	wantNotIn(t, get(t, b.url+"/?prefix=late").text, `">≥ `)
}

func TestPage_MarksWhatIsUnusualAndExplainsIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := locktest.Within(t)
	locktest.PutKey(t, b.Etcd, "locker/by hand/1", "v")
	lease, err := b.Etcd.Grant(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	for _, put := range []struct{ key, value string }{
		{"locker/by etcdctl/1f", "v"},
		{"locker/by an older one/2f", "v"}, {"locker//2f", `{"host":"old","pid":7,"program":"p","version":"1.9.0"}`},
	} {
		if _, err := b.Etcd.Put(ctx, put.key, put.value, clientv3.WithLease(lease.ID)); err != nil {
			t.Fatal(err)
		}
	}
	b.lock(t, "usual", "v")
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 4 })
	for name, want := range map[string][]string{
		"by hand": {"no lease"}, "by etcdctl": {"other program"}, "by an older one": {"version 1.9.0"}, "usual": nil,
	} {
		s := b.state(t, "?name="+url.QueryEscape(name))
		if got := s.Names[0].Holders[0].Marks; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		page := get(t, b.url+"/?name="+url.QueryEscape(name)).text
		_, queue, _ := strings.Cut(page, "<main")
		queue, _, _ = strings.Cut(queue, "</main>")
		if got := strings.Contains(queue, `<dl class="marks"`); got != (want != nil) {
			t.Errorf("%s: explained is %v", name, got)
		}
	}
	wantIn(t, get(t, b.url+"/").text, "nobody waits. 3 are marked.", "What the marks mean", "old:7")
	if first, _, _ := strings.Cut(get(t, b.url+"/?order=marked").text, "</tbody>"); strings.Index(first, ">usual<") < strings.Index(first, ">by hand<") {
		t.Error("the marked names are not first")
	}
}

func TestPage_NamesThatAreNoTextCanBeOpened(t *testing.T) {
	t.Parallel()
	b := setup(t)
	names := []string{"a\u00adb", "a b&c=d?#", `"quoted"`, "größe/ü"}
	for _, name := range names {
		b.lock(t, name, "value of\n"+name)
	}
	b.eventually(t, "", func(s state) bool { return len(s.Names) == len(names) })
	page := get(t, b.url+"/").text
	wantIn(t, page, `>&#34;a\u00adb&#34;<`)
	for _, name := range names {
		href := "/?name=" + url.QueryEscape(name)
		wantIn(t, page, `href="`+strings.ReplaceAll(href, "+", "&#43;")+`"`)
		wantIn(t, get(t, b.url+href).text, "1 holds it, and nobody waits.")
	}
}

func TestHeaders_AreStrictAndOtherHostsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *ui.Config) { c.Hosts = []string{"locks.example"} })
	for _, path := range []string{"/", "/?name=a", "/state.json", "/healthz", "/release?name=a&token=1", "/ui.css", "/ui.js", "/live.js", "/live.css", "/icon.svg", "/nothing"} {
		a := get(t, b.url+path)
		policy := a.header.Get("Content-Security-Policy")
		wantIn(t, policy, "default-src 'none'", "script-src 'self';", "frame-ancestors 'none'", "base-uri 'none'")
		if strings.Contains(policy, "unsafe") || a.header.Get("X-Content-Type-Options") != "nosniff" || a.header.Get("Cache-Control") == "" {
			t.Errorf("%s: %v", path, a.header)
		}
	}
	for host, want := range map[string]int{
		"localhost": 200, "LOCALHOST:8090": 200, "127.0.0.1:1": 200, "[::1]:8090": 200, "10.0.0.1": 200,
		"locks.example": 200, "Locks.Example.:443": 200, "evil.example": 421, "evil.example:8090": 421, "localhost.evil.example": 421,
	} {
		if a := get(t, b.url+"/", "Host", host); a.status != want {
			t.Errorf("as %s: %d, want %d", host, a.status, want)
		}
	}
}

func TestHealth_IsThatOfEtcd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.lock(t, "backup", "v")
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 1 })
	if a := get(t, b.url+"/healthz"); a.status != 200 {
		t.Errorf("%d %s", a.status, a.text)
	}
	b.Server.Stop(t, 0)
	locktest.Eventually(t, "the page is stale", func() bool { return get(t, b.url+"/healthz").status == http.StatusServiceUnavailable })
	if s := b.state(t, ""); !s.Stale || len(s.Names) != 1 {
		t.Errorf("%+v", s)
	}
	wantIn(t, get(t, b.url+"/").text, "stale: no answer from etcd for ", ">backup<")
	b.Server.Restart(t, 0)
	locktest.Eventually(t, "the page is current", func() bool { return get(t, b.url+"/healthz").status == 200 })
}

func TestEvents_BringTheNewestStateAndNothingSeenBefore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.lock(t, "backup", "v")
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 1 })
	next := events(t, b.url+"/events?prefix=b")
	for event, data := "", ""; !strings.Contains(data, "backup"); event, data = next() {
		if event == "pulse" {
			continue
		}
	}
	b.lock(t, "bell", "v")
	for data := ""; !strings.Contains(data, "bell"); _, data = next() {
	}
	b.lock(t, "other", "v")
	b.lock(t, "box", "v")
	for data := ""; !strings.Contains(data, "box"); _, data = next() {
		wantNotIn(t, data, "other")
	}
}

// events opens the stream and returns a function that reads its next event.
func events(t *testing.T, address string) func() (event, data string) {
	t.Helper()
	ctx, cancel := context.WithCancel(locktest.Within(t))
	req, err := http.NewRequestWithContext(ctx, "GET", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		resp.Body.Close()
		transport.CloseIdleConnections()
	})
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() (event, data string) {
		t.Helper()
		for lines.Scan() {
			switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
			case "event":
				event = value
			case "data":
				return event, value
			}
		}
		t.Fatalf("the stream has ended: %v", lines.Err())
		return "", ""
	}
}
