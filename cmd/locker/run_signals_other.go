//go:build unix && !linux

package main

import (
	"os"
	"syscall"
)

// passedOn are the signals that the command gets from locker: those that somebody may send
// it, and none that the kernel sends locker about itself.
var passedOn = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
	syscall.SIGALRM, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGIO,
}
