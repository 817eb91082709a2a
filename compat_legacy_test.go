package locker_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// legacy is all that a program on the original could call.
type legacy interface {
	Lock(name, value string, owned chan<- bool, quit <-chan bool) error
	Watch(name string, valueChanges chan<- string, quit <-chan bool) error
	Get(name string) (string, error)
}

// legacyProgram is written after the original's README, with nothing newer: a
// service that serves while it owns its name, follows the service it depends on,
// and gives up its name when that has gone. It reports what it does.
func legacyProgram(client legacy, name, dependency string, report func(...any)) error {
	value, err := client.Get(dependency)
	if notFound, ok := err.(locker.LockNotFound); ok {
		report(notFound.Error())
	} else if err != nil {
		return err
	}
	if value != "" {
		report(dependency, "is", value)
	}

	owned, changes := make(chan bool), make(chan string)
	quitLock, quitWatch := make(chan bool), make(chan bool)
	results := make(chan error, 2)
	go func() { results <- client.Lock(name, "ok", owned, quitLock) }()
	go func() { results <- client.Watch(dependency, changes, quitWatch) }()
	for seen := value != ""; ; {
		select {
		case own := <-owned:
			report("owns", name, own)
		case change := <-changes:
			if change == "" && seen {
				report(dependency, "is gone")
				quitLock <- true
				close(quitWatch)
				for range 2 {
					if err := <-results; err != nil {
						return err
					}
				}
				return nil
			}
			seen = seen || change != ""
		}
	}
}

func TestCompatRunsAProgramWrittenForTheOriginal(t *testing.T) {
	t.Parallel()
	client := locker.NewCompat(embedtest.Start(t).Client(t)) // the line that has changed
	t.Cleanup(func() { _ = client.Close() })

	b, reports := contend(client, "service-b", "ok", 0), make(chan string, 9)
	b.tells(t, true)
	w := follow(client, "service-a", 0)
	w.tells(t, "")
	result := calling(func() error {
		return legacyProgram(client, "service-a", "service-b", func(words ...any) { reports <- fmt.Sprintln(words...) })
	})
	w.tells(t, "ok")
	got := []string{receive(t, reports), receive(t, reports)}
	b.ends(t)
	if err := receive(t, result); err != nil {
		t.Error(err)
	}
	w.tells(t, "")
	got = append(got, receive(t, reports))
	if want := []string{"service-b is ok\n", "owns service-a true\n", "service-b is gone\n"}; !slices.Equal(got, want) {
		t.Errorf("the program reports %q, want %q", got, want)
	}
}
