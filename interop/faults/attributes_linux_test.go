package faults

import "syscall"

// attributes puts a client process into its own process group, away from the signals of
// the terminal, and has it killed with its parent even while it is stopped and cannot
// read the end of its input.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
