package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"

	"github.com/jagregory/locker/v2"
)

// register holds the record of a host until ctx ends.
func register(ctx context.Context, s settings, arguments []string, stdout, stderr io.Writer) (err error) {
	name, err := checkHost(arguments[0], s.zone)
	if err != nil {
		return usageError{err}
	}
	addresses, err := parseAddresses(arguments[1])
	if err != nil {
		return usageError{fmt.Errorf("cannot register %s: %w", name, err)}
	}
	c, err := connect(ctx, s, newLog(stderr))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	return ignoreInterrupt(ctx, hold(ctx, c.client, name, formatAddresses(addresses), newEventLog(stdout, "")))
}

// hold waits for a name, holds it, and waits again after a loss, until ctx ends. It logs
// the release only afterwards, so that a blocked output does not delay it.
func hold(ctx context.Context, client *locker.Client, name, value string, events *log.Logger) error {
	if holder, err := client.Get(ctx, name); err == nil {
		events.Printf("%s is %s (token %d); waiting for it", name, abbreviate(holder.Value), holder.Token)
	}
	err := client.Campaign(ctx, name, value, func(ctx context.Context, lock *locker.Lock) error {
		events.Printf("holding %s as %s (token %d)", name, value, lock.Token())
		<-ctx.Done()
		var lost *locker.LostError
		if errors.As(context.Cause(ctx), &lost) {
			events.Printf("lost %s (%v); waiting for it again", name, lost.Reason)
		}
		return nil
	})
	if err == nil {
		events.Printf("released %s", name)
	}
	return err
}

// newEventLog returns a log of events, each line with the time and a prefix.
func newEventLog(out io.Writer, prefix string) *log.Logger {
	return log.New(out, prefix, log.Ltime|log.Lmicroseconds|log.Lmsgprefix)
}
