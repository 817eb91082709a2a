// Command nameserver is a DNS server whose records are locks: a host holds its name with its
// addresses as the value, and when it dies the record is gone within the TTL.
//
//	go run ./examples/nameserver     # a demonstration; -h explains the rest
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jagregory/locker/v2"
)

const usage = `Nameserver is a DNS server whose records are locks: a host holds its name with its
addresses as the value, and when it dies the record is gone within the TTL.

	nameserver           all of it in one process, as a demonstration
	nameserver serve     answer queries
	nameserver register NAME ADDR[,ADDR...]
	                     hold a record until stopped; wait for it if another has it
	nameserver watch NAME
	                     print who has a name, now and at each change

Each takes
	-endpoints LIST      addresses of an etcd cluster, separated by commas; without it
	                     an etcd is started inside the program (not with register and
	                     watch, which use that of serve)
	-zone ZONE           the zone that the names are in (example.com)
	-ttl DURATION        of a host's lease: so long the record of a dead host stays (5s);
	                     serve refuses to answer from what is older than that
	-prefix PREFIX       of the keys in etcd (locker/)

serve and the demonstration also take
	-listen ADDR:PORT    for UDP and TCP (127.0.0.1:1053); port 0 is one that is free
	-answer-ttl DURATION how long an answer may be kept, at most (5s): never longer
	                     than the lease could last
	-negative-ttl DURATION
	                     how long "there is no such name" may be kept (1s)

It ends with Ctrl-C: records are given back, and nothing is left in etcd. The exit code is
0 then, 1 (with a sentence) if it could not go on, and 2 if it was called wrongly.
`

// settings are the flags.
type settings struct {
	endpoints []string
	zone      string // in lower case, with the final dot
	prefix    string
	listen    string
	lifetimes lifetimes
}

// command is a use of the program.
type command struct {
	arguments int
	needs     string // of arguments, in words
	serves    bool   // and therefore has the flags for that, and can start an etcd
	run       func(ctx context.Context, s settings, arguments []string, stdout, stderr io.Writer) error
}

var commands = map[string]command{
	"":         {0, "the demonstration takes no arguments", true, demonstrate},
	"serve":    {0, "serve takes no arguments", true, serve},
	"register": {2, "register needs NAME and ADDR[,ADDR...]", false, register},
	"watch":    {1, "watch needs NAME", false, watch},
}

// usageError is a mistake of whoever called the program.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // another Ctrl-C ends it at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case errors.As(err, new(usageError)), errors.Is(err, locker.ErrInvalid):
		fmt.Fprintf(os.Stderr, "nameserver: %v (-h explains)\n", err)
		os.Exit(2)
	case unlessInterrupted(ctx, err) != nil:
		fmt.Fprintln(os.Stderr, "nameserver:", err)
		os.Exit(1)
	}
}

// unlessInterrupted drops the error of what ended because ctx did: that is no failure.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.Cause(ctx))) {
		return nil
	}
	return err
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	name := ""
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		name, args = args[0], args[1:]
	}
	command, ok := commands[name]
	if !ok {
		return usageError{fmt.Errorf("what is %q?", name)}
	}
	s, arguments, err := parse(command, args)
	if err != nil {
		return err
	}
	return command.run(ctx, s, arguments, stdout, stderr)
}

// parse takes flags before, between and after the arguments.
func parse(c command, args []string) (s settings, arguments []string, err error) {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the errors are returned
	endpoints := flags.String("endpoints", "", "")
	zone := flags.String("zone", "example.com", "")
	flags.StringVar(&s.prefix, "prefix", locker.DefaultPrefix, "")
	flags.DurationVar(&s.lifetimes.lease, "ttl", 5*time.Second, "")
	if c.serves {
		flags.StringVar(&s.listen, "listen", "127.0.0.1:1053", "")
		flags.DurationVar(&s.lifetimes.answer, "answer-ttl", 5*time.Second, "")
		flags.DurationVar(&s.lifetimes.negative, "negative-ttl", time.Second, "")
	}
	for {
		switch err := flags.Parse(args); {
		case errors.Is(err, flag.ErrHelp):
			return s, nil, err
		case err != nil:
			return s, nil, usageError{err}
		}
		if flags.NArg() == 0 {
			break
		}
		arguments, args = append(arguments, flags.Arg(0)), flags.Args()[1:]
	}
	s.endpoints = strings.FieldsFunc(*endpoints, func(r rune) bool { return r == ',' || r == ' ' })
	if s.zone, err = checkZone(*zone); err != nil {
		return s, nil, usageError{err}
	}
	return s, arguments, s.check(c, arguments)
}

func (s settings) check(c command, arguments []string) error {
	const day = 24 * time.Hour
	switch {
	case len(arguments) != c.arguments:
		return usageError{errors.New(c.needs)}
	case !c.serves && len(s.endpoints) == 0:
		return usageError{errors.New("-endpoints is missing; serve prints those of the etcd that it starts")}
	case s.lifetimes.answer < 0 || s.lifetimes.answer > day || s.lifetimes.negative < 0 || s.lifetimes.negative > day:
		return usageError{errors.New("the TTL of answers must be from 0 to 24h")}
	}
	for _, endpoint := range s.endpoints {
		if err := checkEndpoint(endpoint); err != nil {
			return usageError{err}
		}
	}
	return nil
}
