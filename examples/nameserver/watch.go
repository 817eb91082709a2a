package main

import (
	"context"
	"errors"
	"io"
	"log"

	"github.com/jagregory/locker/v2"
)

// watch prints who holds a name, now and at each change, until ctx ends.
func watch(ctx context.Context, s settings, arguments []string, stdout, stderr io.Writer) (err error) {
	name, err := checkHost(arguments[0], s.zone)
	if err != nil {
		return usageError{err}
	}
	c, err := connect(ctx, s, newLog(stderr))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return ignoreInterrupt(ctx, follow(ctx, c.client, name, newEventLog(stdout, "")))
}

// follow logs each state of a name until ctx ends.
func follow(ctx context.Context, client *locker.Client, name string, events *log.Logger) error {
	for state, err := range client.Watch(ctx, name) {
		switch {
		case err != nil:
			return err
		case state.Held:
			events.Print(describe(state.Holder, state.Holders))
		default:
			events.Printf("%s is not held (revision %d)", name, state.Revision)
		}
	}
	return nil
}
