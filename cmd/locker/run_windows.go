package main

import (
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/windows"

	"github.com/jagregory/locker/v2"
)

// harmless are the signals that do not end a wait: none here.
var harmless []syscall.Signal

// guard is for other systems: here is no process between locker and the command.
func (p *program) guard() *cobra.Command {
	return &cobra.Command{Use: "guard", Hidden: true, RunE: func(*cobra.Command, []string) error {
		return usageError("this is not for Windows")
	}}
}

// suspends is for other systems.
func suspends(syscall.Signal) bool { return false }

// listen receives what ends a wait.
func (r *run) listen() {
	r.signals = make(chan os.Signal, 64)
	signal.Notify(r.signals, os.Interrupt, syscall.SIGTERM)
}

// execute runs the command under the lock, and returns its exit code when it has ended. A ^C
// reaches the command by itself. What it has started is not ended with it.
func (r *run) execute(l *locker.Lock) (code int, err error) {
	cmd := exec.Command(r.path, r.argv[1:]...)
	cmd.Args[0] = r.argv[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = environmentUnder(l)
	if err := cmd.Start(); err != nil {
		return 0, cannotRun(r.argv[0], err)
	}
	r.log.Info("started", "pid", cmd.Process.Pid)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for ended := l.Context().Done(); ; {
		select {
		case <-r.signals:
			r.told = true
		case <-ended:
			ended = nil
			_ = cmd.Process.Kill()
		case <-done:
			r.log.Info("exited", "code", cmd.ProcessState.ExitCode())
			return cmd.ProcessState.ExitCode(), nil
		}
	}
}

// widthOf returns the width of a terminal, and false if it is none.
func widthOf(f *os.File) (int, bool) {
	if f == nil {
		return 0, false
	}
	var info windows.ConsoleScreenBufferInfo
	if windows.GetConsoleScreenBufferInfo(windows.Handle(f.Fd()), &info) != nil {
		return 0, false
	}
	return int(info.Size.X), true
}
