// Command mesh is a health mesh: each service holds a record while it is healthy, watches
// the services it needs, and reacts when one of them goes down. A page shows them all.
//
//	go run ./examples/mesh
//	go run ./examples/mesh dashboard -endpoints 10.0.0.1:2379
//	go run ./examples/mesh node -endpoints 10.0.0.1:2379 -name service-b -needs service-a,service-c -cascade
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/jagregory/locker/v2"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program immediately
	err := run(ctx, os.Args[1:], os.Stdout)
	var wrong *usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, &wrong):
		fmt.Fprintf(os.Stderr, "mesh: %v\n\n%s", wrong, wrong.usage)
		os.Exit(2)
	case errors.Is(err, locker.ErrInvalid): // such as a TTL that is too short
		fmt.Fprintln(os.Stderr, "mesh:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "mesh:", err)
		os.Exit(1)
	}
}

// run runs the program. An interrupt is not an error: the program releases what it holds,
// and run returns nil.
func run(ctx context.Context, args []string, out io.Writer) error {
	err := dispatch(ctx, args, out)
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil // interrupted during startup
	}
	return err
}

func dispatch(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "node":
			return runNode(ctx, args[1:], out)
		case "dashboard":
			return runDashboard(ctx, args[1:], out)
		}
	}
	return runDemonstration(ctx, args, out)
}

// usageError reports an invalid command line.
type usageError struct {
	problem string
	usage   string
}

func (e *usageError) Error() string { return e.problem }

// parse parses flags, and refuses other arguments.
func parse(flags *flag.FlagSet, args []string, usage string, out io.Writer) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, usage)
		return err
	case err != nil:
		return &usageError{err.Error(), usage}
	case flags.NArg() > 0:
		return &usageError{fmt.Sprintf("unknown argument %q", flags.Arg(0)), usage}
	}
	return nil
}

// parseEndpoints parses addresses of etcd. The list may be empty.
func parseEndpoints(text, usage string) ([]string, error) {
	endpoints := splitList(text)
	for _, endpoint := range endpoints {
		address := endpoint
		if scheme, rest, ok := strings.Cut(endpoint, "://"); ok && (scheme == "http" || scheme == "https") {
			address = rest
		}
		host, port, err := net.SplitHostPort(address)
		if _, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil || host == "" {
			return nil, &usageError{fmt.Sprintf("invalid endpoint %q: want an address such as 127.0.0.1:2379", endpoint), usage}
		}
	}
	return endpoints, nil
}

// splitList splits a list separated by commas or spaces.
func splitList(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}
