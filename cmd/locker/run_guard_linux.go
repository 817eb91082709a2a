package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// clock is the one of now.
const clock = unix.CLOCK_BOOTTIME

// adopts says that whatever the command has started becomes a child of the guard when its
// parent ends, and of locker when the guard ends. So they can wait for all of it, also for
// what has left the group.
const adopts = true

func adoptOrphans() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// children returns the children of this process.
func children() (pids []int) {
	threads, _ := filepath.Glob("/proc/self/task/*/children")
	for _, thread := range threads {
		list, _ := os.ReadFile(thread)
		for field := range strings.FieldsSeq(string(list)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// attributes returns how the command is started: in a process group of its own, which gets
// the terminal if it is to run in the foreground, and dies with the guard.
func attributes(foreground bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Foreground: foreground, Ctty: 0, Pdeathsig: syscall.SIGKILL}
}

// ownProgram is the path of this program, also after its file was replaced.
func ownProgram() (string, error) { return "/proc/self/exe", nil }
