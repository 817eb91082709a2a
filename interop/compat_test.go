//lint:file-ignore SA1019 this tests the deprecated calls
package interop

import (
	"testing"

	"github.com/jagregory/locker/v2"
)

func TestCompat_LocksReportsAndWatches(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		first, second := b.client(t).Compat(), b.client(t).Compat()
		_, err := first.Get("a")
		wantError(t, err, locker.ErrNotFound)
		quit, watched, returned := make(chan bool), make(chan string), make(chan error, 3)
		own, theirs := make(chan bool), make(chan bool)
		go func() { returned <- first.Lock("a", "1", own, quit) }()
		if !receive(t, own) {
			t.Error("the first client does not own the free name")
		}
		unwatch := make(chan bool)
		go func() { returned <- second.Watch("a", watched, unwatch) }()
		if value := receive(t, watched); value != "1" {
			t.Errorf("Watch sent %q", value)
		}
		stop := make(chan bool)
		go func() { returned <- second.Lock("a", "2", theirs, stop) }()
		if receive(t, theirs) {
			t.Error("both clients own the name")
		}
		b.awaitEntries(t, "a", 2)
		close(quit)
		if !receive(t, theirs) {
			t.Error("the second client does not own the name")
		}
		if value, err := first.Get("a"); err != nil || value != "2" {
			t.Errorf("Get returned %q, %v", value, err)
		}
		if value := receive(t, watched); value != "2" {
			t.Errorf("Watch sent %q", value)
		}
		close(stop)
		close(unwatch)
		for range 3 {
			if err := receive(t, returned); err != nil {
				t.Error(err)
			}
		}
	})
}
