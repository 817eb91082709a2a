package main

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A service locks two names. It holds the first while its own health check passes,
// regardless of other services, and the second while it serves. Others look at the
// second. The first ensures that services which need each other do not wait for each
// other forever.
const (
	readyPrefix   = "ready/"
	servingPrefix = "service/"
)

// validName matches the valid names of services.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// maxNeeds is the maximum number of services that one service may need.
const maxNeeds = 64

// record is the value of both names.
type record struct {
	Address string    `json:"address"`
	Needs   []string  `json:"needs,omitempty"`
	Cascade bool      `json:"cascade,omitempty"` // whether it stops serving while something it needs is down
	Since   time.Time `json:"since"`             // when the service began to wait for the name
}

// String returns the value to store in etcd.
func (r record) String() string {
	text, err := json.Marshal(r)
	if err != nil {
		return r.Address // a time beyond the year 9999
	}
	return string(text)
}

// parseRecord parses a value in etcd. A value written by another program is taken as the
// address of a service that needs nothing.
func parseRecord(value string) record {
	var r record
	if json.Unmarshal([]byte(value), &r) != nil {
		return record{Address: value}
	}
	r.Needs = unique(slices.DeleteFunc(r.Needs, func(name string) bool { return !validName.MatchString(name) }))
	r.Needs = r.Needs[:min(len(r.Needs), maxNeeds)]
	return r
}

// unique returns each name once, in the order of their first occurrence.
func unique(names []string) []string {
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

// parseName returns the service to which a name in etcd belongs.
func parseName(key string) (name string, serving, ok bool) {
	name, serving = strings.CutPrefix(key, servingPrefix)
	if !serving {
		if name, ok = strings.CutPrefix(key, readyPrefix); !ok {
			return "", false, false
		}
	}
	return name, serving, validName.MatchString(name)
}
