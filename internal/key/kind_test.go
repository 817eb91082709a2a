package key_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jagregory/locker/v2/internal/key"
)

var (
	kinds   = []key.Kind{key.Shared, key.Exclusive, 2, 17, key.LargestLimit}
	numbers = []int{1, 2, 17}
	members = []string{"694d", "694d-0a1b2c3d"}
)

func TestEntry_ShowsWhatItWasMadeOf(t *testing.T) {
	t.Parallel()
	space, made := key.NewSpace("locker/"), make(map[string]string)
	for _, name := range []string{"a", "a/b", "~", "~/a", "a~2", "a.2"} {
		for _, member := range members {
			for _, kind := range kinds {
				for _, number := range numbers {
					of := fmt.Sprintf("kind %d, number %d of %s for %q", kind, number, member, name)
					k := space.Entry(name, member, kind, number)
					if other := made[k]; other != "" {
						t.Errorf("%q is the key of %s and of %s", k, of, other)
					}
					made[k] = of
					gotName, ok := space.Name(k)
					if got := space.KindOf(k); got != kind || space.Member(k) != member || gotName != name || !ok {
						t.Errorf("%q, the key of %s, is read as kind %d of %q for %q", k, of, got, space.Member(k), gotName)
					}
				}
			}
		}
	}
}

func TestEntry_IsWrittenAsDocumented(t *testing.T) {
	t.Parallel()
	space := key.NewSpace("locker/")
	for _, c := range []struct {
		kind   key.Kind
		number int
		want   string
	}{
		{key.Exclusive, 1, "694d"}, // as in etcd's concurrency package
		{key.Exclusive, 2, "694d.2"},
		{key.Shared, 1, "~/694d"},
		{key.Shared, 2, "~/694d.2"},
		{4, 1, "694d~4"},
		{4, 17, "694d.17~4"},
		{key.LargestLimit, 1, "694d~1000"},
	} {
		if got, want := space.Entry("a", "694d", c.kind, c.number), space.Queue("a")+c.want; got != want {
			t.Errorf("number %d of kind %d is %q, want %q", c.number, c.kind, got, want)
		}
	}
}

func TestKindOf_WhatIsNotOfThisPackageIsExclusive(t *testing.T) {
	t.Parallel()
	space := key.NewSpace("locker/")
	for _, rest := range []string{"", "~", "x~", "x~1", "x~0", "x~01", "x~02", "x~1001", "x~70000", "x~99999999999999999999",
		"x~4z", "x~-2", "x~+2", "x~ 2", "x~2~", "x~2/", "x.1", "x", "x/y", "x~/y", "~x/y", "/~/x", "~0"} {
		if got := space.KindOf(space.Queue("a") + rest); got != key.Exclusive {
			t.Errorf("%q is of kind %d", rest, got)
		}
	}
	for _, k := range []string{"", "~/", "locker/", "locker/a", "locker/~", "locker~4"} {
		if got := space.KindOf(k); got != key.Exclusive {
			t.Errorf("%q, which is no entry, is of kind %d", k, got)
		}
	}
}

func TestMember_IsLeftAsItIsWhereNoNumberOrLimitFollows(t *testing.T) {
	t.Parallel()
	space := key.NewSpace("locker/")
	for _, rest := range []string{"x.1", "x.0", "x.02", "x.", "x~1", "x~4z", "x.2z", "x~1001"} {
		if got := space.Member(space.Queue("a") + rest); got != rest {
			t.Errorf("the member of %q is %q", rest, got)
		}
	}
}

// within reports whether a range has a key.
func within(r key.Range, k string) bool { return r.From <= k && k < r.To }

// lies returns in how many of the ranges of the entries that are not shared a key lies, and whether it lies in that of all.
func lies(space key.Space, name, k string) (unshared int, all bool) {
	for _, r := range space.Unshared(name) {
		if within(r, k) {
			unshared++
		}
	}
	return unshared, within(space.All(name), k)
}

func TestUnshared_LeavesOutTheSharedEntriesOfAllAndNoOthers(t *testing.T) {
	t.Parallel()
	space := key.NewSpace("locker/")
	var keys []string
	for _, name := range []string{"a", "a/", "a~", "a0", "a.", "b", "~"} {
		for _, rest := range []string{"", "~", "~.", "~/", "~/~4", "~/\xff", "~0", "~0a", "~~", "\x7f", "\x00", "\xff\xff"} {
			keys = append(keys, space.Queue(name)+rest)
		}
		for _, kind := range kinds {
			for _, number := range numbers {
				keys = append(keys, space.Entry(name, "694d", kind, number), space.Entry(name, "~694d", kind, number), space.Entry(name, "ffff-0a1b2c3d", kind, number))
			}
		}
	}
	for _, k := range append(keys, "", "locker/a", "locker/a.", "locker/a0", "locker//694d", "\xff") {
		unshared, all := lies(space, "a", k)
		if all != strings.HasPrefix(k, "locker/a/") {
			t.Errorf("%q lies in the range of all: %v", k, all)
		}
		want := 0
		if all && space.KindOf(k) != key.Shared {
			want = 1
		}
		if unshared != want {
			t.Errorf("%q, of kind %d, lies in %d ranges of entries that are not shared, want %d", k, space.KindOf(k), unshared, want)
		}
	}
}

func FuzzKinds(f *testing.F) {
	for i, s := range []string{"~", "x~1", "x~0", "x~01", "x~1001", "x~4z", "x.1", "~/", "~/694d.2", "694d.17~4", "/", ".2", "~2", "~/~4", "", "694d-0a1b2c3d"} {
		f.Add(s, "a", uint16(kinds[i%len(kinds)]), uint8(i))
	}
	space, member := key.NewSpace("locker/"), regexp.MustCompile(`^[-0-9a-f]+$`)
	f.Fuzz(func(t *testing.T, rest, name string, kind uint16, number uint8) {
		space.KindOf(rest)
		space.Member(rest)
		k := space.Queue(name) + rest
		got := space.KindOf(k)
		if got < key.Shared || got > key.LargestLimit {
			t.Fatalf("%q is of kind %d", k, got)
		}
		if unshared, all := lies(space, name, k); !all || (unshared == 0) != (got == key.Shared) || unshared > 1 {
			t.Fatalf("%q, of kind %d, lies in %d ranges of entries that are not shared", k, got, unshared)
		}
		if !strings.Contains(k, space.Member(k)) {
			t.Fatalf("the member of %q is %q", k, space.Member(k))
		}
		if !member.MatchString(rest) {
			return
		}
		want := key.Kind(kind % (uint16(key.LargestLimit) + 1))
		k = space.Entry(name, rest, want, 1+int(number))
		if space.KindOf(k) != want || space.Member(k) != rest {
			t.Fatalf("%q, number %d of %q and kind %d, is read as kind %d of %q", k, 1+int(number), rest, want, space.KindOf(k), space.Member(k))
		}
		if other := space.Entry(name, rest, want, 2+int(number)); other == k {
			t.Fatalf("%q has two numbers", k)
		}
	})
}
