package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A service locks two names: it is ready while its own health check passes, whatever
// becomes of others, and it serves while it is healthy in all. The second is what
// others look at; the first keeps those that need each other from waiting for each
// other.
const (
	readyPrefix   = "ready/"
	servingPrefix = "service/"
)

// validName is what a service may be called.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// mostNeeds is how many services one may need.
const mostNeeds = 64

// record is the value of both names.
type record struct {
	Address string    `json:"address"`
	Needs   []string  `json:"needs,omitempty"`
	Cascade bool      `json:"cascade,omitempty"` // does not serve while something it needs is down
	Since   time.Time `json:"since"`             // when the service wanted the name
}

// String is what is put into etcd.
func (r record) String() string {
	text, err := json.Marshal(r)
	if err != nil {
		return r.Address // a time beyond the year 9999
	}
	return string(text)
}

// parseRecord reads what is in etcd. What others may have put there is an address,
// of a service that needs nothing.
func parseRecord(value string) record {
	var r record
	if json.Unmarshal([]byte(value), &r) != nil {
		return record{Address: value}
	}
	r.Needs = distinct(slices.DeleteFunc(r.Needs, func(name string) bool { return !validName.MatchString(name) }))
	r.Needs = r.Needs[:min(len(r.Needs), mostNeeds)]
	return r
}

// distinct returns each name once, in the order in which they first come.
func distinct(names []string) []string {
	var once []string
	seen := make(map[string]bool)
	for _, name := range names {
		if !seen[name] {
			once = append(once, name)
		}
		seen[name] = true
	}
	return once
}

// parseName returns the service that a name in etcd belongs to.
func parseName(name string) (service string, serving, ok bool) {
	service, serving = strings.CutPrefix(name, servingPrefix)
	if !serving {
		if service, ok = strings.CutPrefix(name, readyPrefix); !ok {
			return "", false, false
		}
	}
	return service, serving, validName.MatchString(service)
}
