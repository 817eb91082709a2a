package ui

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
	"github.com/jagregory/locker/v2/internal/livepage"
)

const (
	// releaseTimeout bounds a release.
	releaseTimeout = 10 * time.Second
	// maxForm bounds the size of a form.
	maxForm = 64 << 10
)

// formView is the data of the template "release".
type formView struct {
	Name    string // as it is shown
	Action  string // the address that the form is sent to
	Back    string // the address of the queue
	Token   int64
	Rows    []entryRow // the entries with the token
	Held    bool
	Unaware bool // its program may not notice
	Secret  string
	Problem string // why nothing was released
}

// serveForm serves the form that releases an entry.
func (s *Server) serveForm(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	token, err := tokenOf(r.URL.Query().Get("token"))
	switch {
	case !s.AllowRelease:
		s.refuse(w, r, http.StatusForbidden, name, "this page may not release locks; start it with --allow-release")
	case name == "" || err != nil:
		s.refuse(w, r, http.StatusBadRequest, name, "the address has no name, or a token that is not a number")
	default:
		s.writeForm(w, r, http.StatusOK, name, token, "")
	}
}

// writeForm writes the form for an entry, with the problem of the last attempt.
func (s *Server) writeForm(w http.ResponseWriter, r *http.Request, status int, name string, token int64, problem string) {
	v := formView{Name: show.Text(name), Back: query{Name: name}.URL(), Token: token, Secret: s.secret, Problem: problem}
	v.Action = "/release?" + url.Values{"name": {name}}.Encode()
	var seats []seat
	for _, seat := range named(s.board.picture().names, name).Seats {
		if seat.Token == token {
			seats = append(seats, seat)
			v.Held, v.Unaware = v.Held || seat.Held, v.Unaware || unaware(seat.Entry)
		}
	}
	s.refresh(r, seats)
	for _, seat := range seats {
		v.Rows = append(v.Rows, s.entryRow(time.Now(), seat))
	}
	if len(seats) == 0 {
		status = http.StatusConflict
	}
	text, err := livepage.Render(templates, "release", v)
	if err != nil {
		http.Error(w, "cannot render the page: "+err.Error(), http.StatusInternalServerError)
		return
	}
	f := s.frame(query{Name: name}, "Release "+show.Text(name))
	f.Content = template.HTML(text) // rendered by a template
	livepage.WritePage(w, status, templates, "page", f)
}

// serveRelease releases the entry of a name that has a token. If the form was made for an
// entry, in the field row, the token has to be the same.
func (s *Server) serveRelease(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		s.refuse(w, r, http.StatusBadRequest, "", "the form cannot be read: "+err.Error())
		return
	}
	name := r.Form.Get("name")
	token, invalid := tokenOf(r.PostForm.Get("token"))
	row, unnamed := tokenOf(r.PostForm.Get("row"))
	switch {
	case !s.AllowRelease:
		s.refuse(w, r, http.StatusForbidden, name, "this page may not release locks; start it with --allow-release")
	case subtle.ConstantTimeCompare([]byte(r.PostForm.Get("secret")), []byte(s.secret)) != 1:
		s.refuse(w, r, http.StatusForbidden, name, "the form is not of this page, or the page is of an earlier run; open it again")
	case name == "" || unnamed != nil && invalid != nil:
		s.refuse(w, r, http.StatusBadRequest, name, "a name and the token of an entry are needed")
	case unnamed == nil && (invalid != nil || token != row):
		s.writeForm(w, r, http.StatusConflict, name, row, "Nothing was released: what was typed is not the token of this entry.")
	default:
		s.release(w, r, name, token)
	}
}

// release releases the entry and shows the queue.
func (s *Server) release(w http.ResponseWriter, r *http.Request, name string, token int64) {
	ctx, cancel := context.WithTimeout(r.Context(), releaseTimeout)
	defer cancel()
	removed, err := s.Client.ForceUnlock(ctx, name, token)
	switch {
	case errors.Is(err, locker.ErrNotFound):
		s.refuse(w, r, http.StatusConflict, name, fmt.Sprintf("nobody with token %d is in the queue any more", token))
		return
	case errors.Is(err, locker.ErrInvalid):
		s.refuse(w, r, http.StatusBadRequest, name, err.Error())
		return
	case err != nil:
		s.refuse(w, r, http.StatusBadGateway, name, "etcd has not confirmed it, but may have done it: "+err.Error())
		return
	}
	for _, e := range removed {
		s.Log.Warn("released by means of the page", "name", e.Name, "token", e.Token, "held", e.Held, "value", show.Beginning(e.Value, 200),
			"process", show.Process(e.Owner), "program", e.Owner.Program, "by", r.RemoteAddr)
		s.board.released(time.Now(), e)
	}
	if err := s.board.look(ctx, s.Client); err != nil {
		s.Log.Warn("the page is not current", "error", err)
	}
	http.Redirect(w, r, query{Name: name}.URL(), http.StatusSeeOther)
}

// refuse answers why nothing was released.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status int, name, problem string) {
	if r.Method == http.MethodPost {
		s.Log.Warn("not released by means of the page", "name", name, "problem", problem, "by", r.RemoteAddr)
	}
	v := formView{Name: show.Text(name), Back: query{Name: name}.URL(), Problem: strings.ToUpper(problem[:1]) + problem[1:] + "."}
	text, err := livepage.Render(templates, "refused", v)
	if err != nil {
		http.Error(w, problem, status)
		return
	}
	f := s.frame(query{Name: name}, "Not released")
	f.Content = template.HTML(text) // rendered by a template
	livepage.WritePage(w, status, templates, "page", f)
}

// tokenOf parses a token.
func tokenOf(text string) (int64, error) {
	token, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err == nil && token < 1 {
		err = strconv.ErrRange
	}
	return token, err
}
