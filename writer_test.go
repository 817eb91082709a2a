package locker

import (
	"context"
	"runtime/debug"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What is counted later than it is started can be overlooked by who cleans up.
func TestAnAttemptIsCountedByItsCallerBeforeItStarts(t *testing.T) {
	t.Parallel()
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	c, err := New(etcd)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begun := 0
	begin := func() {
		begun++
		if !strings.Contains(string(debug.Stack()), "testing.tRunner(") {
			t.Error("counted in another goroutine")
		}
	}
	answer, attempts, err := insist(t.Context(), c, requests(c, c.base, begin, func(context.Context) (string, error) { return "yes", nil }))
	if answer != "yes" || attempts != begun || begun != 1 || err != nil {
		t.Errorf("%q, %v after %d attempts, %d counted", answer, err, attempts, begun)
	}
}
