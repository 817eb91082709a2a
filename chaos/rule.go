package main

import (
	"math"
	"strconv"
	"strings"
)

// The judges' own statement of who holds a name: an entry does if it and all those ahead of
// it may hold the name together.

// mode says beside which others a name may be held. A positive one is a limit: so many may
// hold the name at one time, this hold included.
type mode int

const (
	exclusive mode = 0
	shared    mode = -1
)

// limit returns how many may hold a name while one does so in this mode.
func (m mode) limit() int {
	switch m {
	case exclusive:
		return 1
	case shared:
		return math.MaxInt
	}
	return int(m)
}

func (m mode) String() string {
	switch m {
	case exclusive:
		return "exclusive"
	case shared:
		return "shared"
	}
	return "limited to " + strconv.Itoa(int(m))
}

// together reports whether a name may be held in all of these modes at one time: they are
// shared, all or none, and no more than the smallest limit.
func together(modes ...mode) bool {
	readers, smallest := 0, math.MaxInt
	for _, m := range modes {
		if m == shared {
			readers++
		}
		smallest = min(smallest, m.limit())
	}
	return (readers == 0 || readers == len(modes)) && len(modes) <= smallest
}

// holding returns how many entries of a queue hold its name, which are the oldest.
func holding(queue []*entry) (n int) {
	var modes []mode
	for _, e := range queue {
		if modes = append(modes, e.Mode); !together(modes...) {
			break
		}
		n++
	}
	return n
}

// modeOf returns the mode of an entry, which is a part of its key.
func modeOf(key string) mode {
	_, member, _ := strings.Cut(strings.TrimPrefix(key, lockPrefix), "/")
	if strings.HasPrefix(member, "~/") {
		return shared
	}
	_, digits, _ := strings.Cut(member, "~")
	if n, err := strconv.Atoi(digits); err == nil && n > 1 {
		return mode(n)
	}
	return exclusive
}

// item is a name that is locked in a mode.
type item struct {
	Name string `json:"n"`
	Mode mode   `json:"m,omitempty"`
}

// mixedPrefix begins the names that are locked in all modes. All others are only locked
// exclusively.
const mixedPrefix = "m/"

func isMixed(name string) bool { return strings.HasPrefix(name, mixedPrefix) }
