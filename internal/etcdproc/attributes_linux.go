package etcdproc

import "syscall"

// attributes spare the process the signals of the terminal, which are for its parent, and end it if the
// parent goes without having ended it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
