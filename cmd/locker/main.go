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
	"strings"
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
		Use:   "locker",
		Short: "Distributed locks on etcd: take them, show them, run programs under them",
		Long: `Locker takes, shows and watches distributed locks on etcd, and runs programs under them.

What the flags of the connection do not say comes from the environment: from LOCKER_ENDPOINTS,
or else from ETCDCTL_ENDPOINTS, and so on for the others.`,
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
	root.SetHelpCommand(help())
	refuseAsUsage(root)
	return root
}

// help returns the command help. That of cobra shows the help of locker for any name.
func help() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Explain a command",
		Long:  `Help explains a command, with its flags and an example, or lists all commands.`,
		Example: `  locker help
  locker help run`,
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }, // the environment does not matter
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) (names []string, _ cobra.ShellCompDirective) {
			for _, about := range cmd.Root().Commands() {
				if len(args) == 0 && about.IsAvailableCommand() && strings.HasPrefix(about.Name(), typed) {
					names = append(names, cobra.CompletionWithDesc(about.Name(), about.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usageError("there is no command %q; %q lists all", strings.Join(args, " "), "locker help")
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}
