package locker

import (
	"iter"

	"github.com/jagregory/locker/v2/internal/key"
)

// The rule of who holds a name, for the queue in etcd, the line inside a client, TryLock and
// observers alike:
//
//	An entry holds if no entry of the other kind, shared or not, is ahead of it and, unless
//	it is shared, fewer entries are ahead than the smallest limit among its own and theirs.
//
// An exclusive entry has the limit 1. What the safety of a lock rests on follows from that:
// the entries that hold are the first ones of the queue; they are of one kind, and no more
// than the smallest of their limits; and since what is ahead of an entry only disappears,
// an entry that holds does so until it is removed.

// company is a number of entries that hold a name together.
type company struct {
	size  int
	limit key.Kind // the smallest, or key.Shared
}

// admits reports whether an entry holds that has exactly these ahead.
func (c company) admits(kind key.Kind) bool {
	switch {
	case c.size == 0:
		return true
	case kind == key.Shared || c.limit == key.Shared:
		return kind == c.limit
	}
	return c.size < int(min(kind, c.limit))
}

// admit adds an entry that has exactly these ahead, if it holds.
func (c *company) admit(kind key.Kind) bool {
	if !c.admits(kind) {
		return false
	}
	if c.size == 0 || kind < c.limit {
		c.limit = kind
	}
	c.size++
	return true
}

// holding returns how many entries hold the name, given the kinds of those in its queue, the
// oldest first.
func holding(queue iter.Seq[key.Kind]) int {
	var holders company
	for kind := range queue {
		if !holders.admit(kind) {
			break
		}
	}
	return holders.size
}

// free reports whether an entry holds that has the others ahead, in any order: if it does,
// so do they.
func free(kind key.Kind, ahead iter.Seq[key.Kind]) bool {
	var holders company
	for other := range ahead {
		if !holders.admit(other) {
			return false
		}
	}
	return holders.admit(kind)
}
