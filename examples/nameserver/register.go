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
	r := registration{name: name, value: formatAddresses(addresses), shared: s.shared}
	return ignoreInterrupt(ctx, r.hold(ctx, c.client, newEventLog(stdout, "")))
}

// registration is a record to be held.
type registration struct {
	name, value string
	shared      bool // with other hosts
}

// hold waits for the name, holds it, and waits again after a loss, until ctx ends. It logs
// the release only afterwards, so that a blocked output does not delay it.
func (r registration) hold(ctx context.Context, client *locker.Client, events *log.Logger) error {
	if holders, err := client.Holders(ctx, r.name); err == nil {
		events.Printf("%s; %s", describe(holders[0], len(holders)), r.plan(holders[0]))
	}
	var opts []locker.LockOption
	how := ""
	if r.shared {
		opts, how = append(opts, locker.WithShared()), ", shared"
	}
	err := client.Campaign(ctx, r.name, r.value, func(ctx context.Context, lock *locker.Lock) error {
		events.Printf("holding %s as %s (token %d)%s", r.name, r.value, lock.Token(), how)
		<-ctx.Done()
		var lost *locker.LostError
		if errors.As(context.Cause(ctx), &lost) {
			events.Printf("lost %s (%v); waiting for it again", r.name, lost.Reason)
		}
		return nil
	}, opts...)
	if err == nil {
		events.Printf("released %s", r.name)
	}
	return err
}

// plan returns what a host does about a name that has a holder.
func (r registration) plan(holder locker.Holder) string {
	if othersShare := holder.Limit == 0; r.shared && othersShare {
		return "joining" // at once, unless a host that does not share is already waiting
	}
	return "waiting for it"
}

// describe returns who holds a name, given the oldest of its holders and their number.
func describe(oldest locker.Holder, holders int) string {
	text := fmt.Sprintf("%s is %s (token %d)", oldest.Name, abbreviate(oldest.Value), oldest.Token)
	if holders > 1 {
		text += fmt.Sprintf(", the oldest of %d holders", holders)
	}
	return text
}

// newEventLog returns a log of events, each line with the time and a prefix.
func newEventLog(out io.Writer, prefix string) *log.Logger {
	return log.New(out, prefix, log.Ltime|log.Lmicroseconds|log.Lmsgprefix)
}
