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

// How often the stream says that it lives, and after how much silence, of the stream or of
// etcd, what is shown is stale.
const (
	pulseInterval = 2 * time.Second
	staleAfter    = 6 * time.Second
)

// dashboard shows a board.
type dashboard struct {
	board  *board
	age    func() time.Duration // how long ago etcd was last heard of
	faults *demonstration       // what can be broken; nil if nothing
}

// handler returns the pages. Browsers keep others from framing them, and from posting to
// them.
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
	if d.faults != nil {
		mux.HandleFunc("POST /services/{name}/{fault}", d.fault)
	}
	return d.secure(http.NewCrossOriginProtection().Handler(mux))
}

// secure sets what the browser is to refuse.
func (d *dashboard) secure(next http.Handler) http.Handler {
	forms := "'none'"
	if d.faults != nil {
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

// view returns the view of the board, with what is broken on purpose.
func (d *dashboard) view(after int64) (view, <-chan struct{}) {
	v, changed := d.board.now(after)
	if d.faults != nil {
		for i, s := range v.Services {
			v.Services[i].Faults = d.faults.of(s.Name)
		}
	}
	return v, changed
}

// shownPage is what the template of the page takes.
type shownPage struct {
	view
	Silent     time.Duration // since when etcd has not been heard of, if that is long
	StaleAfter int64         // in ms
	CanBreak   bool
}

func (d *dashboard) page(w http.ResponseWriter, _ *http.Request) {
	v, _ := d.view(0)
	p := shownPage{view: v, StaleAfter: staleAfter.Milliseconds(), CanBreak: d.faults != nil}
	if age := d.age(); age > staleAfter {
		p.Silent = age.Round(time.Second)
	}
	text, err := render("page", p)
	if err != nil {
		http.Error(w, "the page cannot be shown: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(text)) // whoever has hung up does not hear it
}

// Graph is the graph of needs, drawn and coloured.
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

// render executes a template. Nothing of it is sent if that fails.
func render(name string, data any) (string, error) {
	var text bytes.Buffer
	err := pages.ExecuteTemplate(&text, name, data)
	return text.String(), err
}

// health says whether what is shown can be trusted.
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

// update is what the stream tells a page: parts of it, as the page itself has them.
type update struct {
	Version  string `json:"version"`
	Headline string `json:"headline"`
	Services string `json:"services"`
	Graph    string `json:"graph"`
	Log      string `json:"log"`
	Whole    bool   `json:"whole"` // the log is all of it, not what is new
}

// events streams updates. A page that was away says what it has seen last and gets what
// came after it, or everything.
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

// fault breaks or mends a service of the demonstration. Without scripts the browser is
// led back to the page.
func (d *dashboard) fault(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if !d.faults.set(name, r.PathValue("fault")) {
		http.NotFound(w, r)
		return
	}
	d.board.touch()
	http.Redirect(w, r, "/#service-"+name, http.StatusSeeOther)
}
