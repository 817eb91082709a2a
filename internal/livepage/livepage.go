// Package livepage serves pages that show a state and follow it:
//
//	Handler      the headers that make browsers refuse what a page does not need
//	Assets       style sheets and scripts, with those that all pages share
//	Stream       server-sent events: the newest state, again after each change
//	Serve        until a context ends
//
// A page is complete as it is served. A script of it imports follow and morph from live.js,
// which read the stream at /events and show in the element with the id "live" whether the page
// is live, reconnecting or stale. The body of the page has the attributes data-version, with
// the version that it shows, and data-stale-after, with [StaleAfter] in ms.
package livepage

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"time"
)

// readTimeout bounds the time in which a client sends a request, and writeTimeout the time
// until it has read an answer. What write and Stream send has deadlines of its own instead.
const (
	readTimeout  = 30 * time.Second
	writeTimeout = time.Minute
)

//go:embed assets
var shared embed.FS

// Handler returns a handler that serves pages by next. Browsers run no script of a page and
// load nothing for it that is not from the same server, do not show it in a frame, and send no
// forms from elsewhere to it; with forms, it may send forms to its own server.
func Handler(next http.Handler, forms bool) http.Handler {
	target := "'none'"
	if forms {
		target = "'self'"
	}
	policy := "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
		"form-action " + target + "; base-uri 'none'; frame-ancestors 'none'"
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// Assets serves files from the directory assets of fsys, each at the root, and with them
// live.js and live.css.
func Assets(mux *http.ServeMux, fsys fs.FS, names ...string) {
	serve := func(from fs.FS, name string) {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, r, from, "assets/"+name)
		})
	}
	for _, name := range names {
		serve(fsys, name)
	}
	serve(shared, "live.js")
	serve(shared, "live.css")
}

// Render executes a template. It returns the whole text, so that nothing is sent if it fails.
func Render(templates *template.Template, name string, data any) (string, error) {
	var text bytes.Buffer
	err := templates.ExecuteTemplate(&text, name, data)
	return text.String(), err
}

// WritePage answers with a page that a template makes of data.
func WritePage(w http.ResponseWriter, status int, templates *template.Template, name string, data any) {
	text, err := Render(templates, name, data)
	if err != nil {
		http.Error(w, "cannot render the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	write(w, []byte(text))
}

// WriteJSON answers with value in JSON.
func WriteJSON(w http.ResponseWriter, status int, value any) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		http.Error(w, "cannot encode the response as JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	write(w, append(text, '\n'))
}

// write sends text. A client that reads nothing of it for too long is given up.
func write(w http.ResponseWriter, text []byte) {
	answer := http.NewResponseController(w)
	for part := range slices.Chunk(text, 64<<10) {
		_ = answer.SetWriteDeadline(time.Now().Add(StaleAfter)) // an error means that it is not sent to a client
		if _, err := w.Write(part); err != nil {
			return // the client has disconnected, or does not read
		}
	}
}

// Health answers whether a page is current, given the time since its source last answered:
// with status 200, or else 503.
func Health(w http.ResponseWriter, age time.Duration) {
	answer := struct {
		Healthy bool    `json:"healthy"`
		Age     float64 `json:"ageSeconds"`
	}{age <= StaleAfter, age.Seconds()}
	status := http.StatusOK
	if !answer.Healthy {
		status = http.StatusServiceUnavailable
	}
	WriteJSON(w, status, answer)
}

// Serve serves until ctx ends, and returns when all requests have ended: streams end with ctx,
// other requests within a second or they are cut off.
func Serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       time.Minute,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(bounded) != nil {
			stopped <- server.Close()
			return
		}
		stopped <- nil
	}()
	err := server.Serve(l)
	cancel()
	if closed := <-stopped; errors.Is(err, http.ErrServerClosed) {
		return closed
	}
	return fmt.Errorf("cannot serve on %s: %w", l.Addr(), err)
}
