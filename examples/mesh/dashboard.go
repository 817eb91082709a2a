package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"time"
)

//go:embed assets
var assets embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"clock": func(t time.Time) string { return t.UTC().Format("15:04:05") },
	"moment": func(t time.Time) string {
		if time.Since(t) > 20*time.Hour {
			return t.UTC().Format("2 Jan 15:04")
		}
		return t.UTC().Format("15:04:05")
	},
}).ParseFS(assets, "assets/*.html"))

// pulseInterval is the interval between two pulses of the stream. The page is stale if,
// for the time staleAfter, it has received nothing or the dashboard has had no answer
// from etcd.
const (
	pulseInterval = 2 * time.Second
	staleAfter    = 6 * time.Second
)

// dashboard serves the page of a board.
type dashboard struct {
	board *board
	age   func() time.Duration // time since etcd last answered
	demo  *demonstration       // where faults can be injected; nil outside the demonstration
}

// handler returns the handler of all paths. Browsers refuse to show the page in a frame,
// and to send forms from other sites.
func (d *dashboard) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", d.page)
	mux.HandleFunc("GET /events", d.events)
	mux.HandleFunc("GET /state.json", func(w http.ResponseWriter, _ *http.Request) {
		v, _ := d.view(0)
		writeJSON(w, http.StatusOK, v)
	})
	mux.HandleFunc("GET /health", d.health)
	for _, name := range []string{"style.css", "page.js", "icon.svg"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, r, assets, "assets/"+name)
		})
	}
	if d.demo != nil {
		mux.HandleFunc("POST /services/{name}/{fault}", d.fault)
	}
	return d.withSecurityHeaders(http.NewCrossOriginProtection().Handler(mux))
}

// withSecurityHeaders sets the headers that make browsers refuse what the page does not
// need.
func (d *dashboard) withSecurityHeaders(next http.Handler) http.Handler {
	forms := "'none'"
	if d.demo != nil {
		forms = "'self'"
	}
	policy := "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
		"form-action " + forms + "; base-uri 'none'; frame-ancestors 'none'"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// view returns the view of the board, including injected faults.
func (d *dashboard) view(after int64) (view, <-chan struct{}) {
	v, changed := d.board.snapshot(after)
	if d.demo != nil {
		for i, s := range v.Services {
			v.Services[i].Faults = d.demo.faultsOf(s.Name)
		}
	}
	return v, changed
}

// pageData is the data of the page's template.
type pageData struct {
	view
	SilentFor  time.Duration // how long etcd has not answered, if that makes the page stale
	StaleAfter int64         // in ms
}

func (d *dashboard) page(w http.ResponseWriter, _ *http.Request) {
	v, _ := d.view(0)
	p := pageData{view: v, StaleAfter: staleAfter.Milliseconds()}
	if age := d.age(); age > staleAfter {
		p.SilentFor = age.Round(time.Second)
	}
	text, err := render("page", p)
	if err != nil {
		http.Error(w, "cannot render the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(text)) // an error means that the client has disconnected
}

// Graph returns the drawing of the dependency graph.
func (v view) Graph() drawing {
	needs, conditions := make(map[string][]string), make(map[string]condition)
	for _, s := range v.Services {
		needs[s.Name], conditions[s.Name] = s.Needs, s.Condition
	}
	g := draw(needs)
	for i := range g.Boxes {
		g.Boxes[i].Condition = conditions[g.Boxes[i].Name]
	}
	for i := range g.Lines {
		c := conditions[g.Lines[i].To]
		g.Lines[i].Broken = c == down || c == neverSeen
	}
	return g
}

// render executes a template. It returns the whole text, so that nothing is sent if it
// fails.
func render(name string, data any) (string, error) {
	var text bytes.Buffer
	err := pages.ExecuteTemplate(&text, name, data)
	return text.String(), err
}

// health reports whether the page is current.
func (d *dashboard) health(w http.ResponseWriter, _ *http.Request) {
	age := d.age()
	answer := struct {
		Healthy bool    `json:"healthy"`
		Age     float64 `json:"ageSeconds"`
	}{age <= staleAfter, age.Seconds()}
	status := http.StatusOK
	if !answer.Healthy {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, answer)
}

// update is an event of the stream: the parts of the page that may have changed.
type update struct {
	Version  string `json:"version"`
	Headline string `json:"headline"`
	Services string `json:"services"`
	Graph    string `json:"graph"`
	Log      string `json:"log"`
	Whole    bool   `json:"whole"` // whether Log is the whole log, not only new lines
}

// events streams updates. A client that reconnects sends the last version it has seen,
// and receives what came after it, or everything.
func (d *dashboard) events(w http.ResponseWriter, r *http.Request) {
	seen := r.URL.Query().Get("after")
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		seen = id
	}
	after, known := d.board.resume(seen)
	w.Header().Set("Content-Type", "text/event-stream")
	stream := http.NewResponseController(w)
	send := func(event, id string, data any) error {
		text, err := json.Marshal(data)
		if err != nil {
			return err
		}
		if err := stream.SetWriteDeadline(time.Now().Add(staleAfter)); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "event: %s\nid: %s\ndata: %s\n\n", event, id, text); err != nil {
			return err
		}
		return stream.Flush()
	}
	pulse := time.NewTicker(pulseInterval)
	defer pulse.Stop()
	for sent := int64(-1); ; {
		v, changed := d.view(after)
		if v.number != sent {
			u, err := newUpdate(v, !known)
			if err != nil || send("update", v.Version, u) != nil {
				return
			}
			after, known, sent = v.number, true, v.number
		}
		if send("pulse", v.Version, d.age().Milliseconds()) != nil {
			return
		}
		select {
		case <-changed:
		case <-pulse.C:
		case <-r.Context().Done():
			return
		}
	}
}

func newUpdate(v view, whole bool) (u update, err error) {
	u = update{Version: v.Version, Whole: whole}
	for _, part := range []struct {
		name string
		text *string
	}{{"headline", &u.Headline}, {"services", &u.Services}, {"graph", &u.Graph}, {"log", &u.Log}} {
		if *part.text, err = render(part.name, v); err != nil {
			return u, err
		}
	}
	return u, nil
}

// fault injects or removes a fault of the demonstration, and redirects browsers without
// scripts to the page.
func (d *dashboard) fault(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !d.demo.set(name, r.PathValue("fault")) {
		http.NotFound(w, r)
		return
	}
	d.board.touch()
	http.Redirect(w, r, "/#service-"+name, http.StatusSeeOther)
}
