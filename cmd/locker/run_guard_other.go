//go:build unix && !linux

package main

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// clock is the one of now.
const clock = unix.CLOCK_MONOTONIC

// adopts says that what the command leaves behind becomes a child of some other process.
const adopts = false

func adoptOrphans() {}

// children returns nothing: what has left the group is not found.
func children() []int { return nil }

// attributes returns how the command is started: in a process group of its own, which gets
// the terminal if it is to run in the foreground.
func attributes(foreground bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Foreground: foreground, Ctty: 0}
}

// ownProgram is the path of this program.
func ownProgram() (string, error) { return os.Executable() }
