//lint:file-ignore SA1019 the deprecated calls are what is tested
package interop

import (
	"testing"

	"github.com/jagregory/locker/v2"
)

func TestCompat_LocksReportsAndWatches(t *testing.T) {
	everywhere(t, func(t *testing.T, b bundle) {
		first, second := b.client(t).Compat(), b.client(t).Compat()
		_, err := first.Get("a")
		want(t, err, locker.ErrNotFound)
		quit, watched, results := make(chan bool), make(chan string), make(chan error, 3)
		own, theirs := make(chan bool), make(chan bool)
		go func() { results <- first.Lock("a", "1", own, quit) }()
		if !receive(t, own) {
			t.Error("a free name was not owned")
		}
		unwatch := make(chan bool)
		go func() { results <- second.Watch("a", watched, unwatch) }()
		if value := receive(t, watched); value != "1" {
			t.Errorf("watched %q", value)
		}
		stop := make(chan bool)
		go func() { results <- second.Lock("a", "2", theirs, stop) }()
		if receive(t, theirs) {
			t.Error("two own the name")
		}
		b.queued(t, "a", 2)
		close(quit)
		if !receive(t, theirs) {
			t.Error("the second was not told that it owns the name")
		}
		if value, err := first.Get("a"); err != nil || value != "2" {
			t.Errorf("%q, %v", value, err)
		}
		if value := receive(t, watched); value != "2" {
			t.Errorf("watched %q", value)
		}
		close(stop)
		close(unwatch)
		for range 3 {
			if err := receive(t, results); err != nil {
				t.Error(err)
			}
		}
	})
}
