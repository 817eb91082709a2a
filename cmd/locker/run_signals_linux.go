package main

import (
	"os"
	"syscall"
)

// passedOn are the signals that the command gets from locker: those that somebody may send
// it, real-time signals included, and none that the kernel sends locker about itself, as it
// does SIGXCPU, SIGXFSZ, SIGVTALRM and SIGPROF. The help names the exceptions.
var passedOn = append([]os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
	syscall.SIGALRM, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGIO, syscall.SIGPWR,
}, realTime()...)

// realTime returns the real-time signals that a program in Go can catch: not the first three,
// which C libraries use.
func realTime() (signals []os.Signal) {
	for s := syscall.Signal(35); s <= 64; s++ {
		signals = append(signals, s)
	}
	return signals
}
