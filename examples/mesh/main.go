// Command mesh is a health mesh: services that each hold a record of their own while they
// are healthy, watch those they need, and react when one goes away; and a page that shows
// them.
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
	context.AfterFunc(ctx, stop) // another Ctrl-C ends it at once
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

// run is the program. To be interrupted is no error: it gives back what it holds.
func run(ctx context.Context, args []string, out io.Writer) error {
	err := choose(ctx, args, out)
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil // before it had begun
	}
	return err
}

func choose(ctx context.Context, args []string, out io.Writer) error {
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

// usageError is a command line that cannot be followed.
type usageError struct {
	problem string
	usage   string
}

func (e *usageError) Error() string { return e.problem }

// parse reads flags that must be all there is.
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
		return &usageError{fmt.Sprintf("what is %q?", flags.Arg(0)), usage}
	}
	return nil
}

// parseEndpoints reads addresses of etcd. None is in order.
func parseEndpoints(text, usage string) ([]string, error) {
	endpoints := list(text)
	for _, endpoint := range endpoints {
		address := endpoint
		if scheme, rest, ok := strings.Cut(endpoint, "://"); ok && (scheme == "http" || scheme == "https") {
			address = rest
		}
		host, port, err := net.SplitHostPort(address)
		if _, wrong := strconv.ParseUint(port, 10, 16); err != nil || wrong != nil || host == "" {
			return nil, &usageError{fmt.Sprintf("-endpoints %q is not an address such as 127.0.0.1:2379", endpoint), usage}
		}
	}
	return endpoints, nil
}

// list reads items separated by commas or spaces.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}
