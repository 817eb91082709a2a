package release_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// scratch is a directory for what the tests share. It is removed after them.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("", "release-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(scratch)
		if err := forget(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		code := m.Run()
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return code
	}())
}

// forget undoes what is set for another repository or build than those of the tests. With GIT_DIR, as in a git hook,
// every git command would use that one, and GOWORK and GOFLAGS would decide what the go command does in a clone.
func forget() error {
	names, _ := exec.Command("git", "rev-parse", "--local-env-vars").Output() // none without git
	for name := range strings.FieldsSeq(string(names)) {
		if err := os.Unsetenv(name); err != nil {
			return err
		}
	}
	for name, value := range map[string]string{"GOWORK": "auto", "GOFLAGS": "-mod=readonly"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
}
