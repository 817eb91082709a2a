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
	return unlessInterrupted(ctx, hold(ctx, c.client, name, formatAddresses(addresses), journal(stdout, "")))
}

// hold waits its turn for a name, holds it, and begins again when it was lost, until ctx ends. That it
// gives the name back, it tells afterwards: whoever does not read that does not keep the name.
func hold(ctx context.Context, client *locker.Client, name, value string, journal *log.Logger) error {
	if holder, err := client.Get(ctx, name); err == nil {
		journal.Printf("%s is %s (token %d); waiting for it", name, abbreviate(holder.Value), holder.Token)
	}
	err := client.Campaign(ctx, name, value, func(ctx context.Context, lock *locker.Lock) error {
		journal.Printf("holding %s as %s (token %d)", name, value, lock.Token())
		<-ctx.Done()
		var lost *locker.LostError
		if errors.As(context.Cause(ctx), &lost) {
			journal.Printf("lost %s (%v); waiting for it again", name, lost.Reason)
		}
		return nil
	})
	if err == nil {
		journal.Printf("gave %s back", name)
	}
	return err
}

// journal tells what happens, each line with the time and with who it is about.
func journal(out io.Writer, who string) *log.Logger {
	return log.New(out, who, log.Ltime|log.Lmicroseconds|log.Lmsgprefix)
}
