//go:build unix

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// signalHelp is the part of the usage about signals.
const signalHelp = "SIGUSR1 makes it unhealthy, SIGUSR2 healthy again."

// obey turns the health off at SIGUSR1 and on at SIGUSR2, until ctx ends.
func (h *health) obey(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			h.turn(s == syscall.SIGUSR2)
		case <-ctx.Done():
			return
		}
	}
}

// inGroup lets a command be killed with all that it has started.
func inGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
