package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// exactly takes these arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		return fmt.Errorf("give %s and nothing else, not %d arguments", strings.Join(names, " "), len(args))
	}
}

// atMost takes the argument or none.
func atMost(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < 2 {
			return nil
		}
		return fmt.Errorf("give one %s or none, not %d arguments", name, len(args))
	}
}

// shellWord returns a name as it can be typed into a shell.
func shellWord(name string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_/:@%+=,"
	if name != "" && strings.Trim(name, plain) == "" && name[0] != '-' && name[0] != '=' { // zsh expands =name
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}

// refuseAsUsage makes wrong arguments of a command, and of all commands below it, errors of
// the command line.
func refuseAsUsage(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			var exit *exitError
			if err == nil || errors.As(err, &exit) {
				return err
			}
			return usageError("%v; see %q", err, cmd.CommandPath()+" --help")
		}
	}
	for _, below := range cmd.Commands() {
		refuseAsUsage(below)
	}
}
