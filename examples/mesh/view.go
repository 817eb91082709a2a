package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// view is the state of the mesh at one version of the board, as shown on the page and in
// JSON.
type view struct {
	Version  string        `json:"version"`
	Time     time.Time     `json:"time"`
	Counts   []count       `json:"counts"`
	Causes   []string      `json:"causes,omitempty"` // services that are not ready or have never been seen
	Services []serviceView `json:"services"`
	Log      []change      `json:"log"` // newest first

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
	Value     string    `json:"value,omitempty"` // like Holder and Token, the last one if Held is false
	Holder    string    `json:"holder,omitempty"`
	Token     int64     `json:"token,omitempty"`
	Held      bool      `json:"held"`
	Cascade   bool      `json:"cascade"`
	Needs     []string  `json:"needs"`
	NeededBy  []string  `json:"neededBy"`
	Faults    *faults   `json:"faults,omitempty"` // only in the demonstration
}

// snapshot returns the current view, with the changes after the given version, and a
// channel that is closed at the next version.
func (b *board) snapshot(after int64) (view, <-chan struct{}) {
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

// serviceView returns the view of a service. b.mu is held.
func (b *board) serviceView(name string) serviceView {
	s := b.mesh[name]
	c, because := b.mesh.conditionOf(name)
	v := serviceView{
		Name:      name,
		Condition: c,
		Because:   because,
		Since:     b.statuses[name].since,
		Value:     s.Address,
		Holder:    b.statuses[name].holder,
		Token:     b.statuses[name].token,
		Held:      s.serving.Held,
		Cascade:   s.Cascade,
		Needs:     append([]string{}, s.Needs...), // [] in JSON
		NeededBy:  []string{},
	}
	switch {
	case c != up:
		v.Reason = describe(name, c, because)
	case len(s.Needs) == 0:
		v.Reason = "no dependencies"
	case s.Cascade:
		v.Reason = "stops when a dependency is down"
	default:
		v.Reason = "continues when a dependency is down"
	}
	for _, other := range b.names() {
		if slices.Contains(b.mesh[other].Needs, name) {
			v.NeededBy = append(v.NeededBy, other)
		}
	}
	return v
}

// resume returns the version that a client has seen, after which it needs the changes. It
// returns false if that version belongs to another run, or if changes after it have been
// removed, so that the client needs everything.
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

// Sign returns the symbol of the condition, which is shown in addition to its name and
// colour.
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

// Class returns the class of the condition in the style sheet.
func (c condition) Class() string { return strings.ReplaceAll(string(c), " ", "-") }

// Headline summarizes the view in one sentence: the services that are down for a cause of
// their own, how many are down because of them, and how many are about to serve.
func (v view) Headline() string {
	var unseen, broken []string
	ups, affected, starting := 0, 0, 0
	for _, s := range v.Services {
		switch {
		case s.Condition == up:
			ups++
		case s.Condition == neverSeen:
			unseen = append(unseen, s.Name)
		case v.isCause(s.Name):
			broken = append(broken, s.Name)
		case s.Condition == down && len(s.Because) == 0:
			starting++
		case s.Condition == down && slices.ContainsFunc(s.Because, v.isCause):
			affected++
		}
	}
	switch {
	case len(v.Services) == 0:
		return "No service has been seen yet."
	case ups == 1 && len(v.Services) == 1:
		return "The only service is up."
	case ups == len(v.Services):
		return fmt.Sprintf("All %d services are up.", ups)
	}
	var wrong []string
	if len(unseen) > 0 {
		wrong = append(wrong, joinNames(unseen)+" "+pluralize(len(unseen), "has", "have")+" never been seen")
	}
	if len(broken) > 0 {
		wrong = append(wrong, joinNames(broken)+" "+pluralize(len(broken), "is", "are")+" down")
	}
	text, pronoun := strings.Join(wrong, ", "), pluralize(len(unseen)+len(broken), "it", "them")
	switch {
	case len(wrong) == 0:
		text = fmt.Sprintf("%d of %d services are up", ups, len(v.Services))
	case affected > 0 && len(broken) > 0:
		text += fmt.Sprintf(", and %d more because of %s", affected, pronoun)
	case affected > 0:
		text += fmt.Sprintf(", and %d %s down because of %s", affected, pluralize(affected, "service is", "services are"), pronoun)
	}
	if starting > 0 {
		text += fmt.Sprintf("; %d %s about to serve", starting, pluralize(starting, "is", "are"))
	}
	return text + "."
}

func (v view) isCause(name string) bool { return slices.Contains(v.Causes, name) }

// pluralize returns one if n is 1, and otherwise many.
func pluralize(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// joinNames joins names as in a sentence.
func joinNames(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
