package ui

import (
	"cmp"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// pageSize is how many names a page shows, and seatsShown how many entries of a queue.
const (
	pageSize   = 50
	seatsShown = 100
)

// query is what a request asks for: the queue of a name, or names that begin with a prefix.
type query struct {
	Name   string // "" if it asks for names
	Prefix string
	Order  string // "", "waiting" or "marked": what comes first
	Page   int    // from 1 on
}

func parseQuery(values url.Values) query {
	q := query{Name: values.Get("name"), Prefix: values.Get("prefix"), Order: values.Get("order"), Page: 1}
	if q.Order != "waiting" && q.Order != "marked" {
		q.Order = ""
	}
	if n, err := strconv.Atoi(values.Get("page")); err == nil && n > 1 {
		q.Page = n
	}
	return q
}

// URL returns the address of the page that answers the query.
func (q query) URL() string {
	values := url.Values{}
	for _, value := range []struct{ name, value string }{{"name", q.Name}, {"prefix", q.Prefix}, {"order", q.Order}} {
		if value.value != "" {
			values.Set(value.name, value.value)
		}
	}
	if q.Page > 1 {
		values.Set("page", strconv.Itoa(q.Page))
	}
	if len(values) == 0 {
		return "/"
	}
	return "/?" + values.Encode()
}

// at returns the query for another page.
func (q query) at(page int) query {
	q.Page = page
	return q
}

// of returns the query for the queue of a name.
func (q query) of(name string) query {
	q.Name = name
	return q
}

// all returns the query for the names among which the name was.
func (q query) all() query {
	q.Name = ""
	return q
}

// from returns the names that the query asks for, on all pages.
func (q query) from(names []*queue) []*queue {
	first := sort.Search(len(names), func(i int) bool { return names[i].Name >= q.Prefix })
	names = names[first:]
	after := sort.Search(len(names), func(i int) bool { return !strings.HasPrefix(names[i].Name, q.Prefix) })
	names = names[:after]
	if q.Order == "" {
		return names
	}
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b *queue) int {
		if q.Order == "marked" && a.Odd != b.Odd {
			return cmp.Compare(oddness(b), oddness(a))
		}
		return cmp.Compare(b.waiting(), a.waiting())
	})
	return names
}

// page returns those of the names that are on the page, and how many pages there are. Past
// the end there is the last page.
func (q query) page(names []*queue) (shown []*queue, page, pages int) {
	pages = max(1, (len(names)+pageSize-1)/pageSize)
	page = min(q.Page, pages)
	return names[(page-1)*pageSize : min(page*pageSize, len(names))], page, pages
}

// waiting returns how many wait for the name.
func (q *queue) waiting() int { return len(q.Seats) - q.Held }

func oddness(q *queue) int {
	if q.Odd {
		return 1
	}
	return 0
}

// named returns the queue of a name, empty if nobody is there.
func named(names []*queue, name string) *queue {
	if i := sort.Search(len(names), func(i int) bool { return names[i].Name >= name }); i < len(names) && names[i].Name == name {
		return names[i]
	}
	return &queue{Name: name}
}
