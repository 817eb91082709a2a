//go:build unix

package main

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// harmless are the signals that do not end a wait: nobody means that by them.
var harmless = []syscall.Signal{syscall.SIGWINCH, syscall.SIGCONT}

// ending are the signals that ask for the end, also of what --keep would begin again.
var ending = []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

// ignored are the signals that locker was started to ignore, as nohup does. They stay
// ignored, by the command too.
var ignored = slices.DeleteFunc(slices.Clone(passedOn), func(s os.Signal) bool { return !signal.Ignored(s) })

// listen receives what is passed on to the command.
func (r *run) listen() {
	r.signals = make(chan os.Signal, 64)
	ignoreAsBefore()
	for _, s := range passedOn {
		if !slices.Contains(ignored, s) {
			signal.Notify(r.signals, s)
		}
	}
	// Without that, locker would be stopped when it takes the terminal back from the background.
	signal.Ignore(syscall.SIGTTOU)
}

// suspends stops locker if the signal asks for that, and there is no command yet.
func suspends(s syscall.Signal) bool {
	if s == syscall.SIGTSTP {
		suspend()
	}
	return s == syscall.SIGTSTP
}

// suspend stops locker, and what the shell has started together with it. It is done with
// SIGTTIN: once a program in Go has received SIGTSTP, that stops it no more, and SIGSTOP
// would stop it also if there is no shell that could continue it.
func suspend() { _ = syscall.Kill(0, syscall.SIGTTIN) }

// ignoreAsBefore ignores what was ignored when locker was started.
func ignoreAsBefore() {
	if len(ignored) > 0 {
		signal.Ignore(ignored...)
	}
}
