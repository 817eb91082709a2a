// Command nameserver is a DNS server whose records are locks: a host holds its name, with
// its addresses as the value, and when the host dies the record is gone within the TTL.
//
//	go run ./examples/nameserver     # a demonstration; -h lists the commands
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

const usage = `Nameserver is a DNS server whose records are locks: a host holds its name, with its
addresses as the value, and when the host dies the record is gone within the TTL.

	nameserver           run everything in one process, as a demonstration
	nameserver serve     answer queries
	nameserver register [-shared] NAME ADDR[,ADDR...]
	                     hold a record until stopped, waiting for it if necessary
	nameserver watch NAME
	                     print who holds a name, now and at each change

All commands accept
	-endpoints LIST      comma-separated addresses of an etcd cluster; by default, serve and
	                     the demonstration start etcd inside the program (register and
	                     watch need the addresses that serve prints)
	-zone ZONE           zone of the names (example.com)
	-ttl DURATION        TTL of a host's lease: how long the record of a dead host remains
	                     (5s); serve gives no answer from data that is older
	-prefix PREFIX       prefix of the keys in etcd (locker/)

register also accepts
	-shared              hold the name together with other hosts that share it: the name
	                     has the addresses of all of them (by default, one host holds it
	                     and the others wait)

serve and the demonstration also accept
	-listen ADDR:PORT    address for UDP and TCP (127.0.0.1:1053); port 0 picks a free one
	-answer-ttl DURATION
	                     maximum TTL of an answer (5s), which is also limited by the
	                     remaining lifetime of the lease
	-negative-ttl DURATION
	                     how long "there is no such name" may be cached (1s)

Ctrl-C ends the program: it releases its records and leaves nothing behind in etcd. The
exit code is 0 in that case, 1 with a message if the program could not continue, and 2
for an invalid command line.
`

// settings are the values of the flags.
type settings struct {
	endpoints []string
	zone      string // lower case, with the final dot
	prefix    string
	shared    bool // register together with other hosts
	listen    string
	lifetimes lifetimes
}

// command is a command of the program.
type command struct {
	arguments     int    // how many it takes
	usageHint     string // the error message if their number is wrong
	servesQueries bool   // has the flags for it, and starts etcd if there are no endpoints
	registers     bool   // has the flag -shared
	run           func(ctx context.Context, s settings, arguments []string, stdout, stderr io.Writer) error
}

var commands = map[string]command{
	"":         {0, "the demonstration takes no arguments", true, false, demonstrate},
	"serve":    {0, "serve takes no arguments", true, false, serve},
	"register": {2, "register needs NAME and ADDR[,ADDR...]", false, true, register},
	"watch":    {1, "watch needs NAME", false, false, watch},
}

// usageError reports an invalid command line.
type usageError struct{ error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program immediately
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage)
	case errors.As(err, new(usageError)), errors.Is(err, locker.ErrInvalid):
		fmt.Fprintf(os.Stderr, "nameserver: %v (use -h for help)\n", err)
		os.Exit(2)
	case ignoreInterrupt(ctx, err) != nil:
		fmt.Fprintln(os.Stderr, "nameserver:", err)
		os.Exit(1)
	}
}

// ignoreInterrupt returns nil if err is due to the end of ctx, which is not a failure,
// and err otherwise.
func ignoreInterrupt(ctx context.Context, err error) error {
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
	cmd, ok := commands[name]
	if !ok {
		return usageError{fmt.Errorf("unknown command %q", name)}
	}
	s, arguments, err := parse(cmd, args)
	if err != nil {
		return err
	}
	return cmd.run(ctx, s, arguments, stdout, stderr)
}

// parse accepts flags before, between and after the arguments.
func parse(c command, args []string) (s settings, arguments []string, err error) {
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are returned
	endpoints := flags.String("endpoints", "", "")
	zone := flags.String("zone", "example.com", "")
	flags.StringVar(&s.prefix, "prefix", locker.DefaultPrefix, "")
	flags.DurationVar(&s.lifetimes.lease, "ttl", 5*time.Second, "")
	if c.servesQueries {
		flags.StringVar(&s.listen, "listen", "127.0.0.1:1053", "")
		flags.DurationVar(&s.lifetimes.answer, "answer-ttl", 5*time.Second, "")
		flags.DurationVar(&s.lifetimes.negative, "negative-ttl", time.Second, "")
	}
	if c.registers {
		flags.BoolVar(&s.shared, "shared", false, "")
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
	return s, arguments, s.validate(c, arguments)
}

func (s settings) validate(c command, arguments []string) error {
	const day = 24 * time.Hour
	switch {
	case len(arguments) != c.arguments:
		return usageError{errors.New(c.usageHint)}
	case !c.servesQueries && len(s.endpoints) == 0:
		return usageError{errors.New("-endpoints is required; serve prints the endpoints of the etcd that it starts")}
	case s.lifetimes.answer < 0 || s.lifetimes.answer > day || s.lifetimes.negative < 0 || s.lifetimes.negative > day:
		return usageError{errors.New("-answer-ttl and -negative-ttl must be between 0 and 24h")}
	}
	for _, endpoint := range s.endpoints {
		if err := checkEndpoint(endpoint); err != nil {
			return usageError{err}
		}
	}
	return nil
}
