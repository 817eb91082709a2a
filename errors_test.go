package locker_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jagregory/locker/v2"
)

func TestErrors_CutTextsAtACharacter(t *testing.T) {
	t.Parallel()
	b, ctx := setup(t), within(t)
	c, other := b.client(t), b.client(t)
	for _, character := range []string{"é", "€", "😀", "\u0301"} {
		for shift := range 4 {
			long := strings.Repeat("x", shift) + strings.Repeat(character, 600)
			name := long[:strings.LastIndex(long[:1001], character)]
			_, tooLong := c.Lock(ctx, long, "v")
			l := lock(t, c, name, long)
			_, locked := other.TryLock(ctx, name, "w")
			unlock(t, l)
			_, notFound := c.Get(ctx, name)
			for _, err := range []error{tooLong, locked, notFound} {
				if text := err.Error(); !utf8.ValidString(text) || strings.Contains(text, `\x`) || len(text) > 700 {
					t.Errorf("not fit to be printed: %s", text)
				}
			}
		}
	}
	_, err := c.Lock(ctx, strings.Repeat("\x80", 2000), "v")
	want(t, err, locker.ErrInvalid)
}
