package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/jagregory/locker/v2"
)

// showQueue keeps one line on the terminal up to date, if stderr is one: who holds the lock,
// how many are ahead, for how long it waits. The caller must call erase.
func (r *run) showQueue(ctx context.Context) (erase func()) {
	terminal, ok := r.stderr.(*os.File)
	if _, shown := widthOf(terminal); !ok || !shown || r.json || os.Getenv("TERM") == "dumb" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		began, written := time.Now(), false
		for tick := time.NewTicker(lineEvery); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				if written {
					fmt.Fprint(terminal, "\r\x1b[K")
				}
				return
			case <-tick.C:
			}
			text := r.ahead(ctx)
			if width, shown := widthOf(terminal); shown && text != "" {
				fmt.Fprint(terminal, "\r"+shorten(text+", "+time.Since(began).Round(time.Second).String(), width-1)+"\x1b[K")
				written = true
			}
		}
	}()
	return func() { cancel(); <-done }
}

// lineEvery is how often the line is renewed, and how long it takes until there is one.
const lineEvery = time.Second

// ahead says who is in the way; nothing if nobody is.
func (r *run) ahead(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, lineEvery)
	defer cancel()
	for _, name := range append([]string{r.name}, r.also...) {
		queue, err := r.client.Queue(ctx, name)
		if err != nil {
			return "locker: waiting for " + printable(name) + ": etcd does not answer"
		}
		if text := describe(name, before(queue)); text != "" {
			return text
		}
	}
	return ""
}

// before returns those in a queue who come before this process.
func before(queue []locker.Entry) []locker.Entry {
	host, _ := os.Hostname()
	for i, e := range queue {
		if e.Owner.PID == os.Getpid() && e.Owner.Host == host {
			return queue[:i]
		}
	}
	return queue
}

// describe describes the queue before this process; nothing if there is none.
func describe(name string, queue []locker.Entry) string {
	var holders []locker.Entry
	for _, e := range queue {
		if e.Held {
			holders = append(holders, e)
		}
	}
	if len(queue) == 0 {
		return ""
	}
	text := "locker: waiting for " + printable(name) + ": "
	if len(holders) > 0 {
		text += "held by " + shorten(strconv.Quote(holders[0].Value), 30) + " (" + rowOf(holders[0]).process() + ")"
	}
	if more := len(holders) - 1; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text + fmt.Sprintf(", %d ahead", len(queue))
}

// shorten returns what of a text fits into a line.
func shorten(text string, width int) string {
	if line := []rune(text); len(line) > width {
		return string(line[:max(width-1, 0)]) + "…"
	}
	return text
}
