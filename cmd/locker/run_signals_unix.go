//go:build unix

package main

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// harmless are the signals that do not end a wait: nobody means that by them.
var harmless = []syscall.Signal{syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGTSTP}

// ending are the signals that ask for the end, also of what --keep would begin again.
var ending = []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

// ignored are the signals that locker was started to ignore, as nohup does. They stay
// ignored, by the command too.
var ignored = slices.DeleteFunc(slices.Clone(passedOn), func(s os.Signal) bool { return !signal.Ignored(s) })

// listen receives what is passed on to the command. While there is no command, ^Z stops
// locker as it stops any program.
func (r *run) listen() {
	r.signals = make(chan os.Signal, 64)
	ignoreAsBefore()
	for _, s := range passedOn {
		if s != syscall.SIGTSTP && !slices.Contains(ignored, s) {
			signal.Notify(r.signals, s)
		}
	}
}

// ignoreAsBefore ignores what was ignored when locker was started.
func ignoreAsBefore() {
	if len(ignored) > 0 {
		signal.Ignore(ignored...)
	}
}
