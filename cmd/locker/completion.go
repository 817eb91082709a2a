package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func (p *program) completion() *cobra.Command {
	shells := []string{"bash", "zsh", "fish"}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script that completes command lines in a shell",
		Long: `Completion prints a script for the shell. With it, commands, flags, and the names of locks are
completed; the names come from etcd, which is given a second to answer. The script for bash needs
the package bash-completion.`,
		Example: `  source <(locker completion bash)
  locker completion zsh > "${fpath[1]}/_locker"
  locker completion fish > ~/.config/fish/completions/locker.fish`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError("give one shell: %s", strings.Join(shells, ", "))
			}
			return nil
		},
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(p.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(p.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(p.stdout, true)
			}
			return usageError("there is no completion for %q; there is for %s", args[0], strings.Join(shells, ", "))
		},
	}
}

// completionTime bounds how long completing a name takes.
const completionTime = time.Second

// completeName returns the names that are held, begin with what was typed, and need no
// quotation marks; none if etcd does not answer at once.
func (p *program) completeName(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || p.connection.complete(cmd.Root().PersistentFlags()) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
	defer cancel()
	p.connection.dialTimeout = min(p.connection.dialTimeout, completionTime)
	c, _, stop, err := p.connection.open(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer stop()
	holders, _ := c.List(ctx, typed)
	var names []string
	for _, h := range holders {
		// A shell would obey what is not quoted, and not every script quotes what it is offered.
		if (len(names) == 0 || names[len(names)-1] != h.Name) && shellWord(h.Name) == h.Name {
			names = append(names, h.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
