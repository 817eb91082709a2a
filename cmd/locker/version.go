package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/jagregory/locker/v2"
)

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  locker version",
		Args:    cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			fmt.Fprintf(p.stdout, "locker %s, %s, %s/%s\n", locker.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}
