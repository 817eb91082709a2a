package key_test

import (
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/internal/key"
)

func TestSpace_LaysKeysOutAsEtcdsConcurrencyPackageDoes(t *testing.T) {
	space := key.NewSpace("locker/")
	for _, c := range []struct{ name, want string }{
		{"a", "locker/a/694d"},
		{"www.example.com", "locker/www.example.com/694d"},
		{"a/b", "locker/a%2Fb/694d"},
		{"a//", "locker/a%2F%2F/694d"},
		{"a%2Fb", "locker/a%252Fb/694d"},
		{"größe", "locker/größe/694d"},
		{"tab\t", "locker/tab%09/694d"},
		{"del\x7f", "locker/del%7F/694d"},
	} {
		if got := space.Entry(c.name, "694d", key.Exclusive, 1); got != c.want {
			t.Errorf("entry of %q = %q, want %q", c.name, got, c.want)
		}
	}
	if got := space.Record("694d"); got != "locker//694d" {
		t.Errorf("record = %q", got)
	}
}

func TestSpace_APrefixGetsItsSlash(t *testing.T) {
	if got := key.NewSpace("svc").Queue("a"); got != "svc/a/" {
		t.Errorf("queue = %q, want svc/a/", got)
	}
}

func TestSpace_ForeignKeysAreNoEntries(t *testing.T) {
	space := key.NewSpace("locker/")
	for _, k := range []string{"", "locker/", "locker/a", "locker//694d", "other/a/1", "locker/a%zz/1", "locker/a%2f/1", "locker/%41/1", "locker/%2/1", "locker/tab\t/1"} {
		if name, ok := space.Name(k); ok {
			t.Errorf("%q was taken for an entry of %q", k, name)
		}
	}
}

func FuzzNamesAndKeys(f *testing.F) {
	for _, s := range []string{"", "a", "a/b", "a//", "a%2Fb", "%", "/", "\x00\xff", "größe", "locker/", "a/694d"} {
		for _, s2 := range []string{"", "b", "/b"} {
			f.Add(s, s2)
		}
	}
	space := key.NewSpace("locker/")
	f.Fuzz(func(t *testing.T, a, b string) {
		if got, ok := key.Unescape(key.Escape(a)); !ok || got != a {
			t.Fatalf("%q came back as %q, %v", a, got, ok)
		}
		if strings.Contains(key.Escape(a), "/") {
			t.Fatalf("the escape of %q contains a slash", a)
		}
		if name, ok := key.Unescape(a); ok && key.Escape(name) != a {
			t.Fatalf("%q is another escape of %q", a, name)
		}
		if !strings.HasPrefix(key.Escape(a+b), key.Escape(a)) {
			t.Fatalf("the escape of %q does not begin with that of %q", a+b, a)
		}
		if strings.HasPrefix(key.Escape(a), key.Escape(b)) != strings.HasPrefix(a, b) {
			t.Fatalf("escaping changes whether %q begins with %q", a, b)
		}
		if a != b && strings.HasPrefix(space.Queue(a), space.Queue(b)) {
			t.Fatalf("the queue of %q lies within that of %q", a, b)
		}
		if name, ok := space.Name(space.Entry(a, "1f", key.Exclusive, 1)); ok != (a != "") || ok && name != a {
			t.Fatalf("the entry of %q was read as that of %q, %v", a, name, ok)
		}
	})
}

func BenchmarkEntry(b *testing.B) {
	space := key.NewSpace("locker/")
	for _, name := range []string{"www.example.com", "path/to/thing"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				space.Entry(name, "694d8f1c2a3b4c5d", key.Exclusive, 1)
			}
		})
	}
}
