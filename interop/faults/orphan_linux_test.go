package faults

import "syscall"

// attributes spare a client process the signals of the terminal, and end it with its parent, also when
// it is stopped and cannot read the end of its input.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
