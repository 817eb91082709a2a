// Command locker takes, shows and watches the locks of Locker, and runs programs under them.
//
//	locker run backup -- ./backup.sh     # while nobody else holds "backup"
//	locker ls                            # who holds what
//	locker help                          # everything else
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes that every command has. Those of run are its own.
const (
	exitFailed = 1 // what was asked for could not be done, or something is wrong
	exitUsage  = 2 // the command line is not valid
)

// exitError is an error that ends the program with a code of its own.
type exitError struct {
	code int
	err  error // nil if there is nothing to say
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError returns the error of a command line that is not valid: one sentence that says
// what to do.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

// program is what the commands share.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	connection     connection
}

// execute runs the program and returns its exit code.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program even if it cannot write
	return executeUntil(ctx, args, stdin, stdout, stderr)
}

// executeUntil runs the program, which is interrupted when ctx ends.
func executeUntil(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{stdin: stdin, stdout: stdout, stderr: stderr}
	root := p.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := exitFailed
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "locker:", oneLine(text))
	}
	return code
}

// command returns the command line.
func (p *program) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "locker",
		Short:         "Distributed locks on etcd: take them, show them, run programs under them",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return p.connection.complete(cmd.Root().PersistentFlags())
		},
	}
	root.SetIn(p.stdin)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%v; see %q", err, cmd.CommandPath()+" --help")
	})
	p.connection.flags(root.PersistentFlags())
	root.AddCommand(
		p.run(), p.guard(),
		p.get(), p.ls(), p.watch(), p.queue(), p.forceUnlock(),
		p.ui(),
		p.doctor(), p.dev(), p.completion(),
		p.version(),
	)
	refuseAsUsage(root)
	return root
}
