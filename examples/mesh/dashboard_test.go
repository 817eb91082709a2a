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
	"github.com/jagregory/locker/v2/internal/livepage"
)

// testDashboard is a dashboard without etcd.
type testDashboard struct {
	*dashboard
	t        *testing.T
	url      string
	revision int64
}

func newTestDashboard(t *testing.T, age time.Duration) *testDashboard {
	t.Helper()
	d := &dashboard{board: newBoard(), age: func() time.Duration { return age }}
	server := httptest.NewServer(d.handler())
	t.Cleanup(server.Close)
	return &testDashboard{d, t, server.URL, 100}
}

// up makes a service hold its names, each at the next revision.
func (d *testDashboard) up(name string, r record) {
	for _, prefix := range []string{readyPrefix, servingPrefix} {
		d.revision++
		holder := locker.Holder{Name: prefix + name, Value: r.String(), Token: d.revision, Lease: 7}
		d.board.apply(time.Now(), locker.State{Holder: holder, Held: true, Revision: d.revision})
	}
}

// down makes a service release its names.
func (d *testDashboard) down(name string) {
	for _, prefix := range []string{readyPrefix, servingPrefix} {
		d.revision++
		d.board.apply(time.Now(), locker.State{Holder: locker.Holder{Name: prefix + name}, Revision: d.revision})
	}
}

// stopServing makes a service ready but not serving.
func (d *testDashboard) stopServing(name string) {
	d.revision++
	d.board.apply(time.Now(), locker.State{Holder: locker.Holder{Name: servingPrefix + name}, Revision: d.revision})
}

// fetch sends a request.
func (d *testDashboard) fetch(method, path string, header ...string) (*http.Response, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp, string(text)
}

func TestPage_IsCompleteWithoutScripts(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	d.up("a", record{Address: "10.1.1.1:80", Needs: []string{"b", "c"}})
	d.up("b", record{Address: "<script>alert(1)</script>"})
	d.down("b")
	resp, page := d.fetch("GET", "/")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("status %d, type %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	for _, want := range []string{
		`<p class="sentence">c has never been seen, b is down.</p>`,
		`<li id="service-a" class="degraded">`,
		"degraded because of b, c",
		"10.1.1.1:80",
		"lease 7",
		"<dt>Token</dt><dd>102</dd>",
		"<dt>Last token</dt><dd>104</dd>",
		`<li id="service-b" class="down">`,
		"down: not ready",
		`<li id="service-c" class="never-seen">`,
		"<title>a needs b</title>",
		"&lt;script&gt;alert(1)",
		"<td>105</td>",
		`<noscript><meta http-equiv="refresh"`,
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not contain %s", want)
		}
	}
	for _, never := range []string{"<script>", "style=", " onclick", "ZgotmplZ", `<form`} {
		if strings.Contains(page, never) {
			t.Errorf("the page contains %s", never)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestHeaders_AreStrictInEveryResponse(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	for _, path := range []string{"/", "/state.json", "/health", "/style.css", "/page.js", "/icon.svg", "/live.css", "/live.js", "/nothing"} {
		resp, _ := d.fetch("GET", path)
		policy := resp.Header.Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "form-action 'none'", "frame-ancestors 'none'", "base-uri 'none'"} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: the policy %q does not contain %s", path, policy, want)
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

func TestFaults_OnlyInTheDemonstrationAndOnlyFromItsOwnPage(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	if resp, _ := d.fetch("POST", "/services/a/unhealthy"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("outside the demonstration: %d", resp.StatusCode)
	}
	out, _ := startInProcess(t, "-listen", "127.0.0.1:0", "-quiet")
	d.url = pageURL(t, out)
	for path, want := range map[string]int{
		"/services/nobody/unhealthy": 404,
		"/services/mail/sleepy":      404,
		"/services/mail/unhealthy":   303,
	} {
		if resp, _ := d.fetch("POST", path, "Sec-Fetch-Site", "same-origin"); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	if resp, _ := d.fetch("POST", "/services/queue/unhealthy", "Sec-Fetch-Site", "cross-site"); resp.StatusCode != 403 {
		t.Errorf("from another site: %d", resp.StatusCode)
	}
	if resp, _ := d.fetch("GET", "/services/queue/unhealthy"); resp.StatusCode < 400 {
		t.Errorf("with GET: %d", resp.StatusCode)
	}
	var v view
	_, text := d.fetch("GET", "/state.json")
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	for _, s := range v.Services {
		if s.Faults == nil || s.Faults.Unhealthy != (s.Name == "mail") {
			t.Errorf("%s: %+v", s.Name, s.Faults)
		}
	}
}

func TestState_IsAvailableAsJSON(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	d.up("a", record{Address: "10.1.1.1:80", Needs: []string{"b"}})
	var v view
	resp, text := d.fetch("GET", "/state.json")
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

func TestDashboardHealth_IsThatOfTheConnectionToEtcd(t *testing.T) {
	t.Parallel()
	fresh, silent := newTestDashboard(t, time.Second), newTestDashboard(t, time.Minute)
	if resp, _ := fresh.fetch("GET", "/health"); resp.StatusCode != 200 {
		t.Errorf("fresh: %d", resp.StatusCode)
	}
	if resp, _ := silent.fetch("GET", "/health"); resp.StatusCode != 503 {
		t.Errorf("silent: %d", resp.StatusCode)
	}
	if _, page := silent.fetch("GET", "/"); !strings.Contains(page, "stale: no answer from etcd for 1m0s") {
		t.Error("the page is not marked as stale")
	}
}

// events opens the event stream, and returns a function that reads the next event of a
// kind.
func (d *testDashboard) events(query string, header ...string) func(kind string) (id, data string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), "GET", d.url+"/events"+query, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Timeout: testTimeout}
	resp, err := client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		resp.Body.Close()
		client.CloseIdleConnections()
	})
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func(kind string) (id, data string) {
		d.t.Helper()
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
		d.t.Fatalf("the stream ended: %v", lines.Err())
		return "", ""
	}
}

// parseUpdate decodes an update, and also returns its part of the log.
func parseUpdate(t *testing.T, data string) (u update, log string) {
	t.Helper()
	if err := json.Unmarshal([]byte(data), &u); err != nil {
		t.Fatal(err)
	}
	return u, u.Log
}

func TestEvents_ResumeWhereTheStreamBroke(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 1500*time.Millisecond)
	d.up("a", record{})
	next := d.events("?after=unknown")
	id, data := next("update")
	if u, log := parseUpdate(t, data); !u.Whole || !strings.HasSuffix(id, "-2") || strings.Count(log, "<tr") != 1 || !strings.Contains(u.Services, `id="service-a"`) {
		t.Errorf("first update: %+v", u)
	}
	if _, age := next("pulse"); age != "1500" {
		t.Errorf("the pulse has age %s", age)
	}
	d.up("b", record{})
	for range 2 { // one update for each of b's names, or one for both
		id, data = next("update")
		if strings.HasSuffix(id, "-4") {
			break
		}
	}
	if u, log := parseUpdate(t, data); u.Whole || strings.Contains(log, "<b>a</b>") || !strings.Contains(log, "<b>b</b> up") {
		t.Errorf("second update: %+v", u)
	}

	d.down("a")
	d.down("b")
	for about, resumed := range map[string]func(string) (string, string){
		"by query":  d.events("?after=" + id),
		"by header": d.events("?after=old", "Last-Event-ID", id),
	} {
		_, data = resumed("update")
		u, log := parseUpdate(t, data)
		if u.Whole || strings.Count(log, "<tr") != 2 || !strings.Contains(log, "<b>a</b> down: not ready") || !strings.Contains(log, "<b>b</b> down: not ready") {
			t.Errorf("resumed %s: %+v", about, u)
		}
	}
	for _, id := range []string{"", "x-1", id + "0", strings.Split(id, "-")[0] + "--1", strings.Split(id, "-")[0]} {
		_, data := d.events("?after=" + id)("update")
		if u, log := parseUpdate(t, data); !u.Whole || strings.Count(log, "<tr") != 4 {
			t.Errorf("after %q: %+v", id, u)
		}
	}
}

func TestEvents_HaveAPulse(t *testing.T) {
	t.Parallel()
	d := newTestDashboard(t, 0)
	next := d.events("")
	next("pulse")
	began := time.Now()
	next("pulse")
	next("pulse")
	if took := time.Since(began); took < livepage.PulseInterval {
		t.Errorf("two pulses without a change in %v", took)
	}
}
