//go:build unix

package main

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// job is what a child has to do with the job control of a shell.
type job struct {
	notStopped <-chan time.Time // nil, or when it is clear that locker was not stopped
}

// inForeground reports whether stdin is the terminal, and locker may use it.
func (c *child) inForeground() bool {
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// stop stops locker along with the command, so that the shell notices. If somebody
// stops just the command with SIGSTOP, they mean to continue it, and locker keeps the lock. A
// command that was told to end may have been stopped since because it uses the terminal.
func (c *child) stop(s syscall.Signal) {
	if s == syscall.SIGSTOP || c.lock.Err() != nil {
		return
	}
	c.takeTerminal()
	suspend()
	// If there is no shell that could continue it, locker has not been stopped.
	c.notStopped = time.After(100 * time.Millisecond)
}

// goOn goes on after locker was stopped: the command too, if the lock is still held.
func (c *child) goOn() {
	c.notStopped = nil
	if c.lock.Err() != nil {
		return // its context has ended
	}
	c.extend()
	if c.code == nil && c.group != 0 && c.inForeground() {
		setForeground(c.group)
	}
	_ = c.link.send(order{Signal: syscall.SIGCONT})
}

// takeTerminal takes the terminal back from the command, if that has it.
func (c *child) takeTerminal() {
	group, err := unix.IoctlGetInt(0, unix.TIOCGPGRP)
	if err == nil && c.group != 0 && (group == c.group || syscall.Kill(-group, 0) == syscall.ESRCH) {
		setForeground(unix.Getpgrp())
	}
}

// setForeground gives the terminal to a process group.
func setForeground(group int) { _ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, group) }

// widthOf returns the width of a terminal, and false if it is none, or not for locker now.
func widthOf(f *os.File) (int, bool) {
	if f == nil {
		return 0, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, false
	}
	if group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil && group != unix.Getpgrp() {
		return 0, false // in the background
	}
	if size.Col == 0 {
		return 80, true
	}
	return int(size.Col), true
}
