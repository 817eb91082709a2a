package ui

import (
	"context"
	"crypto/rand"
	"embed"
	"fmt"
	"hash/fnv"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
	"github.com/jagregory/locker/v2/internal/livepage"
)

//go:embed assets
var assets embed.FS

var templates = template.Must(template.ParseFS(assets, "assets/*.html"))

// Config says what is served.
type Config struct {
	Client       *locker.Client
	Etcd         *clientv3.Client
	Where        string       // of etcd, as the page shows it
	AllowRelease bool         // the page may take locks away from their holders
	Hosts        []string     // names of the server, beside its addresses and localhost
	Log          *slog.Logger // what is released, and why the page is not current
}

// Server serves the page.
type Server struct {
	Config
	board     *board
	cache     *locker.Cache // says when holders have changed; it keeps all values once more than the board does
	lifetimes *lifetimes
	secret    string // of the forms of this server's pages
}

// New reads all queues, and returns a Server that shows them. Close has to be called.
func New(ctx context.Context, config Config) (*Server, error) {
	s := &Server{Config: config, board: newBoard(), lifetimes: newLifetimes(config.Etcd), secret: rand.Text()}
	var err error
	if s.cache, err = config.Client.NewCache(ctx, ""); err != nil {
		return nil, err
	}
	if err := s.board.look(ctx, config.Client); err != nil {
		s.cache.Close()
		return nil, err
	}
	return s, nil
}

// Close ends what New has begun.
func (s *Server) Close() { s.cache.Close() }

// Serve serves the page, and keeps it up to date, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	following := make(chan struct{})
	go func() {
		defer close(following)
		s.board.follow(ctx, s.Client, s.cache, s.Log)
	}()
	err := livepage.Serve(ctx, l, s.Handler())
	cancel()
	<-following
	return err
}

// Handler returns the handler of all paths.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.servePage)
	mux.Handle("GET /events", &livepage.Stream{Update: s.update, Age: s.board.age})
	mux.HandleFunc("GET /state.json", s.serveState)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { livepage.Health(w, s.board.age()) })
	mux.HandleFunc("GET /release", s.serveForm)
	mux.HandleFunc("POST /release", s.serveRelease)
	livepage.Assets(mux, assets, "ui.css", "ui.js", "icon.svg")
	return livepage.Handler(s.onlyKnownHosts(mux), true)
}

// onlyKnownHosts refuses requests to names that are not known to be the server's. Otherwise a
// page from elsewhere could make its own name lead here, and be of the same origin then. It
// cannot do that with an address.
func (s *Server) onlyKnownHosts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		host = strings.ToLower(strings.Trim(strings.TrimSuffix(host, "."), "[]"))
		if host != "localhost" && net.ParseIP(host) == nil && !slices.Contains(s.Hosts, host) {
			http.Error(w, fmt.Sprintf("%q is not known to be a name of this server; start it with --host %s if it is", host, host), http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// frame is the data of the template "page".
type frame struct {
	Title      string
	Where      string
	Query      query
	Live       bool // the page follows the stream
	Version    string
	StaleAfter int64 // in ms
	SilentFor  time.Duration
	Clock      string // of the picture
	Content    template.HTML
	Legend     []mark
}

func (s *Server) frame(q query, title string) frame {
	return frame{
		Title: title, Where: s.Where, Query: q, StaleAfter: livepage.StaleAfter.Milliseconds(), SilentFor: s.board.stale(),
		Clock: time.Now().Add(-s.board.age()).UTC().Format("15:04:05"), Legend: legend,
	}
}

func (s *Server) servePage(w http.ResponseWriter, r *http.Request) {
	q := parseQuery(r.URL.Query())
	text, _, err := s.content(r, q)
	if err != nil {
		http.Error(w, "cannot render the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	title := "Locks"
	if q.Name != "" {
		title = show.Text(q.Name)
	}
	f := s.frame(q, title)
	f.Live, f.Version, f.Content = true, versionOf(text), template.HTML(text) // rendered by a template
	livepage.WritePage(w, http.StatusOK, templates, "page", f)
}

// update returns the content if it is not the version that the client has seen.
func (s *Server) update(r *http.Request, seen string) (livepage.Update, error) {
	text, changed, err := s.content(r, parseQuery(r.URL.Query()))
	u := livepage.Update{Version: versionOf(text), Changed: changed}
	if u.Version != seen {
		u.Data = map[string]string{"content": text}
	}
	return u, err
}

func versionOf(text string) string {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(text)) // never fails
	return fmt.Sprintf("%x", sum.Sum64())
}

// content returns what the page shows, and a channel that is closed when that has changed.
func (s *Server) content(r *http.Request, q query) (text string, changed <-chan struct{}, err error) {
	picture := s.board.picture()
	if q.Name != "" {
		of := named(picture.names, q.Name)
		s.refresh(r, of.Seats[:min(len(of.Seats), seatsShown)])
		text, err = livepage.Render(templates, "queue", s.queueView(q, of))
		return text, picture.changed, err
	}
	names := q.from(picture.names)
	shown, page, pages := q.page(names)
	var oldest []seat
	for _, of := range shown {
		oldest = append(oldest, of.Seats[0])
	}
	s.refresh(r, oldest)
	v := s.namesView(q.at(page), names, shown, pages)
	v.All = len(picture.names)
	text, err = livepage.Render(templates, "names", v)
	return text, picture.changed, err
}

// namesView is the data of the template "names".
type namesView struct {
	Query       query
	Headline    string
	All         int // names, whatever the query
	Rows        []nameRow
	First, Last int // of the rows, counted from 1
	Total       int
	Page, Pages int
	Previous    string // addresses of pages, empty if there is none
	Next        string
}

func (s *Server) namesView(q query, names, shown []*queue, pages int) namesView {
	v := namesView{Query: q, Headline: headline(q, names), Total: len(names), Page: q.Page, Pages: pages}
	v.First, v.Last = (q.Page-1)*pageSize+1, (q.Page-1)*pageSize+len(shown)
	if q.Page > 1 {
		v.Previous = q.at(q.Page - 1).URL()
	}
	if q.Page < pages {
		v.Next = q.at(q.Page + 1).URL()
	}
	now := time.Now()
	for _, of := range shown {
		v.Rows = append(v.Rows, s.nameRow(now, q, of))
	}
	return v
}

// headline summarizes the names.
func headline(q query, names []*queue) string {
	waiting, waited, odd := 0, 0, 0
	for _, of := range names {
		if n := of.waiting(); n > 0 {
			waiting, waited = waiting+n, waited+1
		}
		odd += oddness(of)
	}
	text := "No name" + beginning(q, "begins") + " is held"
	switch n := len(names); {
	case n == 1:
		text = "1 name" + beginning(q, "begins") + " is held"
	case n > 1:
		text = counted(n, "", "names") + beginning(q, "begin") + " are held"
	}
	if waiting > 0 {
		text += fmt.Sprintf(", and %s for %s", counted(waiting, "waits", "wait"), counted(waited, "of them", "of them"))
	} else if len(names) > 0 {
		text += ", and nobody waits"
	}
	if odd > 0 {
		text += fmt.Sprintf(". %s", counted(odd, "is marked", "are marked"))
	}
	return text + "."
}

func beginning(q query, verb string) string {
	if q.Prefix == "" {
		return ""
	}
	return " that " + verb + " with " + show.Text(q.Prefix)
}

// counted returns a number with its noun.
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits + " " + many
}

// queueView is the data of the template "queue".
type queueView struct {
	Name    string
	Back    string // the address of the names
	Summary string
	Rows    []entryRow
	More    int // entries that are not shown
	Release bool
	Marks   []mark
	Changes []changeRow
}

func (s *Server) queueView(q query, of *queue) queueView {
	v := queueView{Name: show.Text(q.Name), Back: q.all().URL(), Release: s.AllowRelease, Marks: marksOfAll(of.Seats)}
	v.Summary = "Nobody holds this name."
	if of.Held > 0 {
		v.Summary = counted(of.Held, "holds", "hold") + " it, and nobody waits."
	}
	if of.waiting() > 0 {
		v.Summary = counted(of.Held, "holds", "hold") + " it, and " + counted(of.waiting(), "waits", "wait") + "."
	}
	now, shown := time.Now(), min(len(of.Seats), seatsShown)
	for i, seat := range of.Seats[:shown] {
		r := s.entryRow(now, seat)
		r.Position = i + 1
		v.Rows = append(v.Rows, r)
	}
	v.More = len(of.Seats) - shown
	for _, c := range s.board.history(q.Name) {
		v.Changes = append(v.Changes, changeRowOf(c))
	}
	return v
}
