package ui

import (
	"cmp"
	"fmt"
	"net/url"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
)

// nameRow is a name as the table shows it. Of several holders it shows the oldest one.
type nameRow struct {
	ID, Name, URL string
	Holders       string
	Waiting       int
	entryRow
}

// entryRow is an entry in a queue as it is shown.
type entryRow struct {
	ID         string
	Position   int
	State      string
	Kind       string
	Value      string
	WholeValue string
	Process    string
	Program    string
	Started    string // the process
	Token      int64
	Since      string
	SinceTime  string
	Lease      string
	TTL        string
	Late       bool // the lease was not renewed lately
	Marks      []mark
	ReleaseURL string // empty if that is not allowed
}

// changeRow is a change as it is shown.
type changeRow struct {
	Clock, Time string
	Sign, Class string
	Text        string
}

// mark is what is unusual about an entry.
type mark struct{ Label, Text string }

var (
	noLease = mark{"no lease", "This entry has no lease, so it does not end with the process that made it. Somebody has put it by hand, " +
		"or a program other than Locker has. It stays until it is deleted or released."}
	otherProgram = mark{"other program", "No process is known for this entry. A program other than Locker has made it, such as etcdctl lock " +
		"or etcd's concurrency package, or somebody has deleted the record of its session."}
)

// otherVersion is the mark of a client of another version.
func otherVersion(version string) mark {
	return mark{"version " + show.Text(version), "The client of this entry is version " + show.Text(version) + " of Locker, and this page " +
		locker.Version + ". They exclude each other. A kind of lock that this page does not know is shown as exclusive."}
}

// legend explains the marks.
var legend = []mark{noLease, otherProgram, {"version 1.2.3", "The client of this entry is of another version of Locker than this page, which is " +
	locker.Version + ". They exclude each other. A kind of lock that this page does not know is shown as exclusive."}}

// unaware reports whether nothing is known to tell the program of an entry that it is gone.
func unaware(e locker.Entry) bool { return e.Lease == 0 || e.Owner == (locker.Owner{}) }

func marksOf(e locker.Entry) (marks []mark) {
	switch {
	case e.Lease == 0:
		marks = append(marks, noLease)
	case e.Owner == (locker.Owner{}):
		marks = append(marks, otherProgram)
	}
	if e.Owner.Version != "" && e.Owner.Version != locker.Version {
		marks = append(marks, otherVersion(e.Owner.Version))
	}
	return marks
}

// marksOfAll returns the marks of the first entries of a queue, each once.
func marksOfAll(seats []seat) (marks []mark) {
	seen := make(map[mark]bool)
	for _, s := range seats[:min(len(seats), seatsShown)] {
		for _, m := range marksOf(s.Entry) {
			if !seen[m] {
				seen[m] = true
				marks = append(marks, m)
			}
		}
	}
	return marks
}

// nameRow returns a name as the table shows it.
func (s *Server) nameRow(now time.Time, q query, of *queue) nameRow {
	r := nameRow{
		ID:       "name:" + url.QueryEscape(of.Name),
		Name:     show.Text(of.Name),
		URL:      q.of(of.Name).URL(),
		Holders:  strconv.Itoa(of.Held),
		Waiting:  of.waiting(),
		entryRow: s.entryRow(now, of.Seats[0]),
	}
	if limit := of.Seats[0].Limit; limit > 1 {
		r.Holders += " of " + strconv.Itoa(limit)
	}
	r.Marks = marksOfAll(of.Seats)
	return r
}

// entryRow returns an entry as it is shown.
func (s *Server) entryRow(now time.Time, of seat) entryRow {
	r := entryRow{
		ID:         "entry:" + url.QueryEscape(of.Key) + ":" + strconv.FormatInt(of.Token, 10),
		State:      "waits",
		Kind:       show.Kind(of.Limit),
		Value:      show.Beginning(of.Value, 60),
		WholeValue: show.Beginning(of.Value, 2000),
		Process:    show.Process(of.Owner),
		Program:    cmp.Or(show.Text(of.Owner.Program), show.Unknown),
		Token:      of.Token,
		Since:      sinceOf(now, of),
		SinceTime:  of.Since.UTC().Format(time.RFC3339),
		Lease:      show.Lease(of.Lease),
		TTL:        "none",
		Marks:      marksOf(of.Entry),
	}
	if of.Held {
		r.State = "holds"
	}
	if !of.Owner.Start.IsZero() {
		r.Started = of.Owner.Start.UTC().Format("2006-01-02 15:04:05")
	}
	if of.Lease != 0 {
		r.TTL, r.Late = s.ttl(of.Lease)
	}
	if s.AllowRelease {
		r.ReleaseURL = "/release?" + url.Values{"name": {of.Name}, "token": {strconv.FormatInt(of.Token, 10)}}.Encode()
	}
	return r
}

// ttl returns what is left of a lease, and whether that is so little that it was not renewed
// lately: clients renew after a third.
func (s *Server) ttl(lease clientv3.LeaseID) (text string, late bool) {
	left, granted, ok := s.lifetimes.of(lease)
	switch {
	case !ok:
		return show.Unknown, false
	case left < 0:
		return "run out", true
	}
	return fmt.Sprintf("%d of %d s", int(left.Seconds()), int(granted.Seconds())), left < granted/2
}

// sinceOf returns how long the entry has been there.
func sinceOf(now time.Time, of seat) string {
	text := lasting(now.Sub(of.Since))
	if !of.Exact {
		text = "≥ " + text
	}
	return text
}

// lasting returns a duration as people say it.
func lasting(d time.Duration) string {
	d = max(d, 0)
	days, hours, minutes := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", minutes)
	case days == 0:
		return fmt.Sprintf("%d h %d min", hours, minutes)
	}
	return fmt.Sprintf("%d d %d h", days, hours)
}

// changeRowOf returns a change as it is shown.
func changeRowOf(c change) changeRow {
	r := changeRow{Clock: c.Time.UTC().Format("15:04:05"), Time: c.Time.UTC().Format(time.RFC3339)}
	who := fmt.Sprintf("token %d", c.Token)
	if c.Value != "" {
		who += ", value " + show.Text(c.Value)
	}
	if c.Owner != "" {
		who += ", " + c.Owner
	}
	switch c.What {
	case "holds":
		r.Sign, r.Class, r.Text = "●", "holds", "held by "+who
	case "value":
		r.Sign, r.Class, r.Text = "●", "holds", "new value of the holder, "+who
	case "released here":
		r.Sign, r.Class, r.Text = "✕", "released", "released by means of this page: "+who
	default:
		r.Sign, r.Class, r.Text = "○", "gone", "no longer held by "+who
	}
	return r
}
