// Package key maps the names of locks to keys of etcd and back:
//
//	<prefix><escaped name>/<member>       an exclusive entry in the queue of a name
//	<prefix><escaped name>/<member>~4     one that is limited to 4
//	<prefix><escaped name>/~/<member>     a shared one
//	<prefix>/<member>                     the record of a member
//
// The queue of a name is every key below <prefix><escaped name>/. That is the layout of
// etcd's concurrency package (Mutex, Election) and of "etcdctl lock" and "etcdctl elect",
// so that all of them exclude each other. Names are escaped byte by byte: no queue lies
// within another, and a prefix of names is a prefix of keys.
//
// A member that has several entries in a queue numbers them: after the member comes .2, .3
// and so on. The kind of an entry is in its key, so that even the event of its deletion
// shows it, and shared entries lie apart, so that they can be left out of a read.
package key

import (
	"bytes"
	"strconv"
	"strings"
)

// Kind says beside which others an entry may hold its name. Shared entries hold it together
// with any number of other shared ones; of any other kind, so many entries hold it at most.
type Kind int16

const (
	Shared       Kind = 0
	Exclusive    Kind = 1
	LargestLimit Kind = 1000
)

const (
	sharedPart  = "~/" // between the queue and the member of a shared entry
	afterShared = "~0" // follows every key with the sharedPart
	limitMark   = "~"  // before the limit
	numberMark  = "."  // before the number
)

// Range is the range of the keys from From on and before To.
type Range struct{ From, To string }

// Space is the part of etcd's key space below one prefix.
type Space struct {
	prefix string // ends in a slash
}

// NewSpace returns the space below prefix. A slash is appended if prefix does not end in
// one.
func NewSpace(prefix string) Space {
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	return Space{prefix}
}

// Queue returns the prefix shared by all entries in the queue of name, and by no other key.
func (s Space) Queue(name string) string { return s.prefix + Escape(name) + "/" }

// Entry returns the key of the entry of that kind and number that member has in the queue of
// name. Numbers begin with 1.
func (s Space) Entry(name, member string, kind Kind, number int) string {
	key := s.Queue(name)
	if kind == Shared {
		key += sharedPart
	}
	key += member
	if number > 1 {
		key += numberMark + strconv.Itoa(number)
	}
	if kind > Exclusive {
		key += limitMark + strconv.Itoa(int(kind))
	}
	return key
}

// KindOf returns the kind of an entry. What does not look like a key of this package is
// exclusive: the entries of other programs, and kinds of later versions.
func (s Space) KindOf(key string) Kind {
	kind, _ := parse(s.inQueue(key))
	return kind
}

// Member returns the member that has an entry.
func (s Space) Member(key string) string {
	_, member := parse(s.inQueue(key))
	return member
}

// parse takes apart what follows the queue in a key.
func parse(rest string) (Kind, string) {
	kind := Exclusive
	if member, ok := strings.CutPrefix(rest, sharedPart); ok {
		kind, rest = Shared, member
	} else if i := strings.LastIndex(rest, limitMark); i >= 0 {
		if n, ok := count(rest[i+1:]); ok && n <= int(LargestLimit) {
			kind, rest = Kind(n), rest[:i]
		}
	}
	if i := strings.LastIndex(rest, numberMark); i >= 0 {
		if _, ok := count(rest[i+1:]); ok {
			rest = rest[:i]
		}
	}
	return kind, rest
}

// count returns the number in a key, which is at least 2, and written in only one way.
func count(digits string) (n int, ok bool) {
	n, err := strconv.Atoi(digits)
	return n, err == nil && n > 1 && strconv.Itoa(n) == digits
}

// All returns the range of all entries in the queue of name.
func (s Space) All(name string) Range {
	queue := s.Queue(name)
	return Range{queue, after(queue)}
}

// Unshared returns the ranges of the entries in the queue of name that are not shared. Only
// other programs have entries in the second.
func (s Space) Unshared(name string) []Range {
	queue := s.Queue(name)
	return []Range{{queue, queue + sharedPart}, {queue + afterShared, after(queue)}}
}

// after returns the end of the range of all keys that begin with a queue, which ends in a
// slash.
func after(queue string) string { return queue[:len(queue)-1] + string(rune('/'+1)) }

// Record returns the key of the record of member. It lies in the queue of the empty name,
// which no lock can have.
func (s Space) Record(member string) string { return s.prefix + "/" + member }

// Records returns the prefix shared by all records.
func (s Space) Records() string { return s.prefix + "/" }

// Below returns the prefix shared by the entries of all names that begin with
// prefix. For an empty prefix that includes the records.
func (s Space) Below(prefix string) string { return s.prefix + Escape(prefix) }

// Name returns the name in whose queue the key is an entry, and false if the key is not an
// entry of this space.
func (s Space) Name(key string) (string, bool) {
	rest, ok := strings.CutPrefix(key, s.prefix)
	if !ok {
		return "", false
	}
	escaped, _, ok := strings.Cut(rest, "/")
	if !ok || escaped == "" {
		return "", false
	}
	return Unescape(escaped)
}

// SameQueue reports whether two keys of the space are in the same queue.
func (s Space) SameQueue(a, b []byte) bool {
	return bytes.Equal(s.queue(a), s.queue(b))
}

// queue returns the part of key up to and including the slash that ends the name.
func (s Space) queue(key []byte) []byte {
	if len(key) < len(s.prefix) {
		return key
	}
	if i := bytes.IndexByte(key[len(s.prefix):], '/'); i >= 0 {
		return key[:len(s.prefix)+i+1]
	}
	return key
}

// inQueue returns the part of key that follows its queue.
func (s Space) inQueue(key string) string {
	if len(key) < len(s.prefix) {
		return ""
	}
	_, rest, _ := strings.Cut(key[len(s.prefix):], "/")
	return rest
}

// Escape percent-encodes the slash, the percent sign and control bytes. It works byte by
// byte, so the escape of a prefix is a prefix of the escape.
func Escape(name string) string {
	n := 0
	for i := range len(name) {
		if special(name[i]) {
			n++
		}
	}
	if n == 0 {
		return name
	}
	var b strings.Builder
	b.Grow(len(name) + 2*n)
	for i := range len(name) {
		if c := name[i]; special(c) {
			b.WriteByte('%')
			b.WriteByte(digits[c>>4])
			b.WriteByte(digits[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Unescape is the inverse of Escape. It reports false for a text that Escape cannot have
// made, so that every name has exactly one escape.
func Unescape(escaped string) (string, bool) {
	if !strings.ContainsFunc(escaped, func(r rune) bool { return r < utf8Self && special(byte(r)) }) {
		return escaped, true
	}
	var b strings.Builder
	b.Grow(len(escaped))
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		if c == '%' {
			if i+2 >= len(escaped) {
				return "", false
			}
			high, low := strings.IndexByte(digits, escaped[i+1]), strings.IndexByte(digits, escaped[i+2])
			if high < 0 || low < 0 {
				return "", false
			}
			c = byte(high<<4 | low)
			i += 2
			if !special(c) {
				return "", false
			}
		} else if special(c) {
			return "", false
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

const (
	digits   = "0123456789ABCDEF"
	utf8Self = 0x80 // below it, a rune is its own byte
)

// special reports whether Escape encodes c.
func special(c byte) bool { return c == '/' || c == '%' || c < 0x20 || c == 0x7f }
