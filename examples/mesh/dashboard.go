package main

import (
	"embed"
	"html/template"
	"net/http"
	"time"

	"github.com/jagregory/locker/v2/internal/livepage"
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

// dashboard serves the page of a board.
type dashboard struct {
	board *board
	age   func() time.Duration // time since etcd last answered
	demo  *demonstration       // where faults can be injected; nil outside the demonstration
}

// handler returns the handler of all paths.
func (d *dashboard) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", d.page)
	mux.Handle("GET /events", &livepage.Stream{Update: d.update, Age: d.age})
	mux.HandleFunc("GET /state.json", func(w http.ResponseWriter, _ *http.Request) {
		v, _ := d.view(0)
		livepage.WriteJSON(w, http.StatusOK, v)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { livepage.Health(w, d.age()) })
	livepage.Assets(mux, assets, "style.css", "page.js", "icon.svg")
	if d.demo != nil {
		mux.HandleFunc("POST /services/{name}/{fault}", d.fault)
	}
	return livepage.Handler(mux, d.demo != nil)
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
	p := pageData{view: v, StaleAfter: livepage.StaleAfter.Milliseconds()}
	if age := d.age(); age > livepage.StaleAfter {
		p.SilentFor = age.Round(time.Second)
	}
	livepage.WritePage(w, http.StatusOK, pages, "page", p)
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

// update is an event of the stream: the parts of the page that may have changed.
type update struct {
	Headline string `json:"headline"`
	Services string `json:"services"`
	Graph    string `json:"graph"`
	Log      string `json:"log"`
	Whole    bool   `json:"whole"` // whether Log is the whole log, not only new lines
}

// update returns what a client lacks that has last seen the given version: what came after
// it, or everything.
func (d *dashboard) update(_ *http.Request, seen string) (livepage.Update, error) {
	after, known := d.board.resume(seen)
	v, changed := d.view(after)
	next := livepage.Update{Version: v.Version, Changed: changed}
	if known && after == v.number {
		return next, nil
	}
	u, err := newUpdate(v, !known)
	next.Data = u
	return next, err
}

func newUpdate(v view, whole bool) (u update, err error) {
	u = update{Whole: whole}
	for _, part := range []struct {
		name string
		text *string
	}{{"headline", &u.Headline}, {"services", &u.Services}, {"graph", &u.Graph}, {"log", &u.Log}} {
		if *part.text, err = livepage.Render(pages, part.name, v); err != nil {
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
