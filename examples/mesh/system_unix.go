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

// signalHelp is the sentence of the usage about signals.
const signalHelp = "SIGUSR1 marks it unhealthy, SIGUSR2 marks it healthy again."

// handleSignals marks the node unhealthy on SIGUSR1 and healthy on SIGUSR2, until ctx
// ends.
func (h *health) handleSignals(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			h.setHealthy(s == syscall.SIGUSR2)
		case <-ctx.Done():
			return
		}
	}
}

// setProcessGroup makes canceling a command kill all processes that it has started.
func setProcessGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
