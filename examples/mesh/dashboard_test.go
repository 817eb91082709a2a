package main

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
)

// exhibit is a dashboard without an etcd.
type exhibit struct {
	*dashboard
	t        *testing.T
	url      string
	revision int64
}

func newExhibit(t *testing.T, age time.Duration) *exhibit {
	t.Helper()
	d := &dashboard{board: newBoard(), age: func() time.Duration { return age }}
	server := httptest.NewServer(d.handler())
	t.Cleanup(server.Close)
	return &exhibit{d, t, server.URL, 100}
}

// up lets a service hold its names, each at the next revision.
func (e *exhibit) up(name string, r record) {
	for _, prefix := range []string{readyPrefix, servingPrefix} {
		e.revision++
		holder := locker.Holder{Name: prefix + name, Value: r.String(), Token: e.revision, Lease: 7}
		e.board.take(time.Now(), locker.State{Holder: holder, Held: true, Revision: e.revision})
	}
}

// down lets a service lose them.
func (e *exhibit) down(name string) {
	for _, prefix := range []string{readyPrefix, servingPrefix} {
		e.revision++
		e.board.take(time.Now(), locker.State{Holder: locker.Holder{Name: prefix + name}, Revision: e.revision})
	}
}

// waits lets a service that is ready not serve.
func (e *exhibit) waits(name string) {
	e.revision++
	e.board.take(time.Now(), locker.State{Holder: locker.Holder{Name: servingPrefix + name}, Revision: e.revision})
}

// fetch asks for a page.
func (e *exhibit) fetch(method, path string, header ...string) (*http.Response, string) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), method, e.url+path, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp, string(text)
}

func TestThePageHasEverythingWithoutScripts(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	e.up("a", record{Address: "10.1.1.1:80", Needs: []string{"b", "c"}})
	e.up("b", record{Address: "<script>alert(1)</script>"})
	e.down("b")
	resp, page := e.fetch("GET", "/")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("status %d, type %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	for _, want := range []string{
		`<p class="sentence">c was never seen, b is down.</p>`,
		`<li id="service-a" class="degraded">`,
		"degraded because b, c",
		"10.1.1.1:80",
		"lease 7",
		"<dt>Token</dt><dd>102</dd>",
		"<dt>Last token</dt><dd>104</dd>",
		`<li id="service-b" class="down">`,
		"down by itself",
		`<li id="service-c" class="never-seen">`,
		"<title>a needs b</title>",
		"&lt;script&gt;alert(1)",
		"<td>105</td>",
		`<noscript><meta http-equiv="refresh"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	for _, never := range []string{"<script>", "style=", " onclick", "ZgotmplZ", `<form`} {
		if strings.Contains(page, never) {
			t.Errorf("the page has %s", never)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestEveryAnswerIsStrict(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	for _, path := range []string{"/", "/state.json", "/health", "/style.css", "/page.js", "/icon.svg", "/nothing"} {
		resp, _ := e.fetch("GET", path)
		policy := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "form-action 'none'", "frame-ancestors 'none'", "base-uri 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: the policy %q has no %s", path, policy, want)
			}
		}
		if strings.Contains(policy, "unsafe") || resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Cache-Control") == "" {
			t.Errorf("%s: %v", path, resp.Header)
		}
		if (resp.StatusCode == 200) == (path == "/nothing") {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
}

func TestOnlyTheDemonstrationCanBeBrokenAndOnlyFromItsOwnPage(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	if resp, _ := e.fetch("POST", "/services/a/unhealthy"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a dashboard answers %d", resp.StatusCode)
	}
	out, _ := start(t, "-listen", "127.0.0.1:0", "-quiet")
	e.url = address(t, out)
	for path, want := range map[string]int{
		"/services/nobody/unhealthy": 404,
		"/services/mail/sleepy":      404,
		"/services/mail/unhealthy":   303,
	} {
		if resp, _ := e.fetch("POST", path, "Sec-Fetch-Site", "same-origin"); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	if resp, _ := e.fetch("POST", "/services/queue/unhealthy", "Sec-Fetch-Site", "cross-site"); resp.StatusCode != 403 {
		t.Errorf("from another site: %d", resp.StatusCode)
	}
	if resp, _ := e.fetch("GET", "/services/queue/unhealthy"); resp.StatusCode < 400 {
		t.Errorf("by a link: %d", resp.StatusCode)
	}
	var v view
	_, text := e.fetch("GET", "/state.json")
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	for _, s := range v.Services {
		if s.Faults == nil || s.Faults.Unhealthy != (s.Name == "mail") {
			t.Errorf("%s: %+v", s.Name, s.Faults)
		}
	}
}

func TestTheStateIsThereAsJSON(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	e.up("a", record{Address: "10.1.1.1:80", Needs: []string{"b"}})
	var v view
	resp, text := e.fetch("GET", "/state.json")
	if err := json.Unmarshal([]byte(text), &v); err != nil || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%v, %v", err, resp.Header)
	}
	if len(v.Services) != 2 || v.Services[0].Condition != degraded || !slices.Equal(v.Services[0].Because, []string{"b"}) ||
		v.Services[1].Condition != neverSeen || !slices.Equal(v.Services[1].NeededBy, []string{"a"}) {
		t.Errorf("services: %+v", v.Services)
	}
	if strings.Contains(text, "null") {
		t.Errorf("null in %s", text)
	}
}

func TestHealthIsThatOfTheConnectionToEtcd(t *testing.T) {
	t.Parallel()
	fresh, silent := newExhibit(t, time.Second), newExhibit(t, time.Minute)
	if resp, _ := fresh.fetch("GET", "/health"); resp.StatusCode != 200 {
		t.Errorf("fresh: %d", resp.StatusCode)
	}
	if resp, _ := silent.fetch("GET", "/health"); resp.StatusCode != 503 {
		t.Errorf("silent: %d", resp.StatusCode)
	}
	if _, page := silent.fetch("GET", "/"); !strings.Contains(page, "stale: no word from etcd for 1m0s") {
		t.Error("the page does not say that it is stale")
	}
}

// events opens the stream and returns what reads its next event of a kind.
func (e *exhibit) events(query string, header ...string) func(kind string) (id, data string) {
	e.t.Helper()
	req, err := http.NewRequestWithContext(e.t.Context(), "GET", e.url+"/events"+query, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		resp.Body.Close()
		client.CloseIdleConnections()
	})
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func(kind string) (id, data string) {
		e.t.Helper()
		event := ""
		for lines.Scan() {
			switch field, value, _ := strings.Cut(lines.Text(), ": "); field {
			case "event":
				event = value
			case "id":
				id = value
			case "data":
				if data = value; event == kind {
					return id, data
				}
			}
		}
		e.t.Fatalf("the stream ended: %v", lines.Err())
		return "", ""
	}
}

// changes decodes an update and returns what its log says.
func changes(t *testing.T, data string) (u update, log string) {
	t.Helper()
	if err := json.Unmarshal([]byte(data), &u); err != nil {
		t.Fatal(err)
	}
	return u, u.Log
}

func TestAStreamGoesOnWhereItWasBroken(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 1500*time.Millisecond)
	e.up("a", record{})
	next := e.events("?after=unknown")
	id, data := next("update")
	if u, log := changes(t, data); !u.Whole || u.Version != id || strings.Count(log, "<tr") != 1 || !strings.Contains(u.Services, `id="service-a"`) {
		t.Errorf("at first: %+v", u)
	}
	if _, age := next("pulse"); age != "1500" {
		t.Errorf("the pulse tells %s", age)
	}
	e.up("b", record{})
	for range 2 { // b's two names, or both at once
		id, data = next("update")
		if strings.HasSuffix(id, "-4") {
			break
		}
	}
	if u, log := changes(t, data); u.Whole || strings.Contains(log, "<b>a</b>") || !strings.Contains(log, "<b>b</b> up") {
		t.Errorf("then: %+v", u)
	}

	e.down("a")
	e.down("b")
	for about, resumed := range map[string]func(string) (string, string){
		"by address": e.events("?after=" + id),
		"by header":  e.events("?after=old", "Last-Event-ID", id),
	} {
		_, data = resumed("update")
		u, log := changes(t, data)
		if u.Whole || strings.Count(log, "<tr") != 2 || !strings.Contains(log, "<b>a</b> down by itself") || !strings.Contains(log, "<b>b</b> down by itself") {
			t.Errorf("resumed %s: %+v", about, u)
		}
	}
	for _, id := range []string{"", "x-1", id + "0", strings.Split(id, "-")[0] + "--1", strings.Split(id, "-")[0]} {
		_, data := e.events("?after=" + id)("update")
		if u, log := changes(t, data); !u.Whole || strings.Count(log, "<tr") != 4 {
			t.Errorf("after %q: %+v", id, u)
		}
	}
}

func TestTheStreamHasAPulse(t *testing.T) {
	t.Parallel()
	e := newExhibit(t, 0)
	next := e.events("")
	next("pulse")
	began := time.Now()
	next("pulse")
	next("pulse")
	if took := time.Since(began); took < pulseInterval {
		t.Errorf("two pulses without a change in %v", took)
	}
}
