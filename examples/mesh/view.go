package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// view is the state of the mesh at one version of the board, as the page and the JSON
// show it.
type view struct {
	Version  string        `json:"version"`
	Time     time.Time     `json:"time"`
	Counts   []count       `json:"counts"`
	Causes   []string      `json:"causes,omitempty"` // what is down by itself or was never seen, and takes others along
	Services []serviceView `json:"services"`
	Log      []change      `json:"log"` // the newest first

	number int64
}

type count struct {
	Condition condition `json:"condition"`
	Services  int       `json:"services"`
}

type serviceView struct {
	Name      string    `json:"name"`
	Condition condition `json:"condition"`
	Reason    string    `json:"reason,omitempty"`
	Because   []string  `json:"because,omitempty"`
	Since     time.Time `json:"since"`
	Value     string    `json:"value,omitempty"` // the last, as the rest, if it is not held
	Holder    string    `json:"holder,omitempty"`
	Token     int64     `json:"token,omitempty"`
	Held      bool      `json:"held"`
	Cascade   bool      `json:"cascade"`
	Needs     []string  `json:"needs"`
	NeededBy  []string  `json:"neededBy"`
	Faults    *faults   `json:"faults,omitempty"` // only in the demonstration
}

// now returns the view of the present, with the changes after a version, and what is
// closed at the next.
func (b *board) now(after int64) (view, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := view{
		Version: b.epoch + "-" + strconv.FormatInt(b.version, 10),
		Time:    time.Now(),
		number:  b.version,
	}
	counts := make(map[condition]int)
	for _, name := range b.names() {
		s := b.serviceView(name)
		counts[s.Condition]++
		if s.Condition == neverSeen || slices.Contains(s.Because, name) {
			v.Causes = append(v.Causes, name)
		}
		v.Services = append(v.Services, s)
	}
	for _, c := range []condition{up, degraded, down, neverSeen} {
		v.Counts = append(v.Counts, count{c, counts[c]})
	}
	for _, c := range slices.Backward(b.log) {
		if c.Version > after {
			v.Log = append(v.Log, c)
		}
	}
	return v, b.changed
}

// serviceView returns what is to be shown of a service. b.mu is held.
func (b *board) serviceView(name string) serviceView {
	s := b.mesh[name]
	c, because := b.mesh.judge(name)
	v := serviceView{
		Name:      name,
		Condition: c,
		Because:   because,
		Since:     b.shown[name].since,
		Value:     s.Address,
		Holder:    b.shown[name].holder,
		Token:     b.shown[name].token,
		Held:      s.serving.Held,
		Cascade:   s.Cascade,
		Needs:     append([]string{}, s.Needs...), // [] in JSON
		NeededBy:  []string{},
	}
	switch {
	case c != up:
		v.Reason = reason(name, c, because)
	case len(s.Needs) == 0:
		v.Reason = "needs nothing"
	case s.Cascade:
		v.Reason = "goes down with what it needs"
	default:
		v.Reason = "goes on without what it needs"
	}
	for _, other := range b.names() {
		if slices.Contains(b.mesh[other].Needs, name) {
			v.NeededBy = append(v.NeededBy, other)
		}
	}
	return v
}

// resume returns the version after which a page that has seen a version wants changes. If
// it is of another run, or so old that changes after it are forgotten, the page has to
// begin anew.
func (b *board) resume(seen string) (after int64, ok bool) {
	epoch, number, _ := strings.Cut(seen, "-")
	after, err := strconv.ParseInt(number, 10, 64)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || epoch != b.epoch || after < 0 || after > b.version {
		return 0, false
	}
	return after, after >= b.dropped
}

// Sign is the sign that stands for the condition, beside its name and colour.
func (c condition) Sign() string {
	switch c {
	case up:
		return "✓"
	case degraded:
		return "!"
	case down:
		return "✕"
	}
	return "?"
}

// Class is the condition as a class of the style sheet.
func (c condition) Class() string { return strings.ReplaceAll(string(c), " ", "-") }

// Headline says in a sentence how the mesh is: what is wrong by itself, how many are down
// because of that, and how many are down because of nobody any more.
func (v view) Headline() string {
	var unseen, broken []string
	ups, along, coming := 0, 0, 0
	for _, s := range v.Services {
		switch {
		case s.Condition == up:
			ups++
		case s.Condition == neverSeen:
			unseen = append(unseen, s.Name)
		case v.isCause(s.Name):
			broken = append(broken, s.Name)
		case s.Condition == down && len(s.Because) == 0:
			coming++
		case s.Condition == down && slices.ContainsFunc(s.Because, v.isCause):
			along++
		}
	}
	switch {
	case len(v.Services) == 0:
		return "No service has been seen yet."
	case ups == 1 && len(v.Services) == 1:
		return "The one service is up."
	case ups == len(v.Services):
		return fmt.Sprintf("All %d services are up.", ups)
	}
	var wrong []string
	if len(unseen) > 0 {
		wrong = append(wrong, enumerate(unseen)+" "+verb(len(unseen), "was", "were")+" never seen")
	}
	if len(broken) > 0 {
		wrong = append(wrong, enumerate(broken)+" "+verb(len(broken), "is", "are")+" down")
	}
	text := strings.Join(wrong, ", ")
	switch {
	case len(wrong) == 0:
		text = fmt.Sprintf("%d of %d services are up", ups, len(v.Services))
	case along > 0 && len(broken) > 0:
		text += fmt.Sprintf(", and because of that %d more", along)
	case along > 0:
		text += fmt.Sprintf(", and because of that %d %s down", along, verb(along, "is", "are"))
	}
	if coming > 0 {
		text += fmt.Sprintf("; %d %s about to serve", coming, verb(coming, "is", "are"))
	}
	return text + "."
}

func (v view) isCause(name string) bool { return slices.Contains(v.Causes, name) }

// verb returns the form of a verb for so many.
func verb(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// enumerate joins names as a sentence does.
func enumerate(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
