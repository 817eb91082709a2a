// Package show has how entries are shown, on a terminal, on the page, and to programs.
package show

import (
	"encoding/base64"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// Unknown stands for what is not known.
const Unknown = "–"

// States of an entry.
const (
	Held    = "held"
	Waiting = "waiting"
)

// An Entry is an entry as programs are shown it. Its JSON is an interface: fields are added,
// and none is renamed or removed.
type Entry struct {
	Key     string        `json:"key"`
	State   string        `json:"state"`
	Kind    string        `json:"kind"` // "exclusive", "shared" or "limited"
	Limit   int           `json:"limit"`
	Value   string        `json:"value"`
	Binary  string        `json:"value_base64,omitempty"` // if the value is not text
	Token   int64         `json:"token"`
	Lease   string        `json:"lease"` // empty if there is none
	TTL     *int64        `json:"ttl_left_seconds"`
	Granted *int64        `json:"ttl_granted_seconds"`
	Owner   *locker.Owner `json:"owner"`
}

// EntryOf returns an entry as programs are shown it, without the time to live of its lease.
func EntryOf(e locker.Entry) Entry {
	shown := Entry{Key: e.Key, State: Waiting, Kind: "limited", Limit: e.Limit, Value: e.Value, Token: e.Token}
	if e.Held {
		shown.State = Held
	}
	if e.Limit < 2 {
		shown.Kind = Kind(e.Limit)
	}
	if !utf8.ValidString(e.Value) {
		shown.Binary = base64.StdEncoding.EncodeToString([]byte(e.Value))
	}
	if e.Lease != 0 {
		shown.Lease = Lease(e.Lease)
	}
	if e.Owner != (locker.Owner{}) {
		shown.Owner = &e.Owner
	}
	return shown
}

// Kind returns the kind of an entry with that limit.
func Kind(limit int) string {
	switch limit {
	case 0:
		return "shared"
	case 1:
		return "exclusive"
	}
	return "limit " + strconv.Itoa(limit)
}

// Lease returns a lease as etcdctl writes it.
func Lease(id clientv3.LeaseID) string {
	if id == 0 {
		return "none"
	}
	return strconv.FormatInt(int64(id), 16)
}

// Process returns the host and the process of an owner.
func Process(owner locker.Owner) string {
	if owner == (locker.Owner{}) {
		return Unknown
	}
	return Text(owner.Host) + ":" + strconv.Itoa(owner.PID)
}

// Text returns a text as it may be shown. A text with anything in it that a terminal would
// obey or not show is quoted, and so is one that looks quoted.
func Text(text string) string {
	if utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) && !strings.HasPrefix(text, `"`) {
		return text
	}
	return strconv.Quote(text)
}

// Beginning returns at most so many characters of a text, as they may be shown.
func Beginning(text string, most int) string {
	if utf8.RuneCountInString(text) <= most {
		return Text(text)
	}
	return Text(string([]rune(text[:min(len(text), utf8.UTFMax*most)])[:most])) + "…"
}
