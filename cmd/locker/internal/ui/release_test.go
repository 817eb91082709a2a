package ui_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// release sends the form that releases an entry.
func (b bundle) release(t *testing.T, name string, token any, secret string, header ...string) answer {
	t.Helper()
	form := url.Values{"name": {name}, "token": {fmt.Sprint(token)}, "secret": {secret}}
	return do(t, "POST", b.url+"/release", form, header...)
}

func (b bundle) form(t *testing.T, l *locker.Lock) answer {
	t.Helper()
	b.eventually(t, "?name="+url.QueryEscape(l.Name()), func(s state) bool { return len(s.Names) == 1 })
	return get(t, fmt.Sprintf("%s/release?name=%s&token=%d", b.url, url.QueryEscape(l.Name()), l.Token()))
}

func TestRelease_TakesALockAwayFromItsHolder(t *testing.T) {
	t.Parallel()
	b := setup(t, withRelease)
	l := b.lock(t, "backup", "first")
	b.wait(t, "backup", "second")
	b.Queued(t, "backup", 2)
	form := b.form(t, l)
	wantIn(t, form.text, ">first<", "To release it, type its token", "within a third of its TTL")
	wantNotIn(t, form.text, "may never notice")
	a := b.release(t, "backup", l.Token(), secret(t, form), "Sec-Fetch-Site", "same-origin")
	if a.status != 303 || a.header.Get("Location") != "/?name=backup" {
		t.Fatalf("%+v", a)
	}
	locktest.Lost(t, l, locker.Deleted)
	b.eventually(t, "?name=backup", func(s state) bool { return len(s.Names) == 1 && s.Names[0].Holders[0].Value == "second" })
	wantIn(t, get(t, b.url+"/?name=backup").text, fmt.Sprintf("released by means of this page: token %d, value first", l.Token()))
	wantIn(t, b.log.String(), `msg="released by means of the page" name=backup`, fmt.Sprintf("token=%d", l.Token()), "by=127.0.0.1:")

	again := b.release(t, "backup", l.Token(), secret(t, form))
	if wantIn(t, again.text, "is in the queue any more"); again.status != 409 {
		t.Errorf("a second time: %d", again.status)
	}
	if gone := get(t, fmt.Sprintf("%s/release?name=backup&token=%d", b.url, l.Token())); gone.status != 409 || strings.Contains(gone.text, "<form") {
		t.Errorf("the form of an entry that is gone: %+v", gone)
	}
}

func TestRelease_AnEntryWithoutALease(t *testing.T) {
	t.Parallel()
	b := setup(t, withRelease)
	locktest.PutKey(t, b.Etcd, "locker/by hand/1", "v")
	b.eventually(t, "", func(s state) bool { return len(s.Names) == 1 })
	token := b.state(t, "").Names[0].Holders[0].Token
	form := get(t, fmt.Sprintf("%s/release?name=by+hand&token=%d", b.url, token))
	wantIn(t, form.text, "This entry has no lease", "Its program may never notice; stop it first.")
	wantNotIn(t, form.text, "learns of it")
	if a := b.release(t, "by hand", token, secret(t, form)); a.status != 303 {
		t.Errorf("%+v", a)
	}
	b.Queued(t, "by hand", 0)
}

func TestRelease_IsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, withRelease)
	l := b.lock(t, "backup", "v")
	own := secret(t, b.form(t, l))
	reading := b
	reading.url = b.serve(t)
	for _, c := range []struct {
		about  string
		answer answer
		want   int
	}{
		{"without --allow-release", reading.release(t, "backup", l.Token(), own), 403},
		{"the form without --allow-release", get(t, reading.url+"/release?name=backup&token=1"), 403},
		{"without a secret", b.release(t, "backup", l.Token(), ""), 403},
		{"with another secret", b.release(t, "backup", l.Token(), own+"x"), 403},
		{"from another site", b.release(t, "backup", l.Token(), own, "Sec-Fetch-Site", "cross-site"), 403},
		{"from another port", b.release(t, "backup", l.Token(), own, "Sec-Fetch-Site", "same-site"), 403},
		{"from another origin, by an old browser", b.release(t, "backup", l.Token(), own, "Origin", "http://evil.example"), 403},
		{"by another name of the server", b.release(t, "backup", l.Token(), own, "Host", "evil.example"), 421},
		{"with another token", b.release(t, "backup", l.Token()+1, own), 409},
		{"of another name", b.release(t, "other", l.Token(), own), 409},
		{"without a name", b.release(t, "", l.Token(), own), 400},
		{"without a number", b.release(t, "backup", "all", own), 400},
		{"with a negative number", b.release(t, "backup", "-1", own), 400},
		{"with everything in the address", do(t, "POST", fmt.Sprintf("%s/release?name=backup&token=%d&secret=%s", b.url, l.Token(), own), nil), 403},
		{"with a form that is too large", b.release(t, strings.Repeat("x", 1<<20), 1, own), 400},
		{"with GET", get(t, fmt.Sprintf("%s/release?name=backup&token=%d&secret=%s", b.url, l.Token(), own)), 200},
	} {
		if c.answer.status != c.want {
			t.Errorf("%s: %d, want %d", c.about, c.answer.status, c.want)
		}
	}
	if err := l.SetValue(locktest.Within(t), "still held"); err != nil {
		t.Errorf("the lock: %v", err)
	}
	wantIn(t, b.log.String(), "not released by means of the page")
}

func TestRelease_TheTokenHasToBeThatOfTheRow(t *testing.T) {
	t.Parallel()
	b := setup(t, withRelease)
	l, other := b.lock(t, "report", "a", locker.WithShared()), b.lock(t, "report", "b", locker.WithShared())
	own := secret(t, b.form(t, l))
	b.eventually(t, "?name=report", func(s state) bool { return len(s.Names[0].Holders) == 2 })
	for typed, want := range map[string]int{"": 409, "x": 409, fmt.Sprint(other.Token()): 409, fmt.Sprintf(" %d ", l.Token()): 303} {
		form := url.Values{"row": {fmt.Sprint(l.Token())}, "token": {typed}, "secret": {own}}
		a := do(t, "POST", b.url+"/release?name=report", form)
		if a.status != want {
			t.Errorf("typed %q: %d, want %d", typed, a.status, want)
		}
		if want == 409 {
			wantIn(t, a.text, "what was typed is not the token of this entry")
		}
	}
	locktest.Lost(t, l, locker.Deleted)
	if err := other.SetValue(locktest.Within(t), "still held"); err != nil {
		t.Errorf("the other one: %v", err)
	}
}
