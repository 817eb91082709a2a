//go:build unix && !linux

package etcdproc

import "syscall"

// attributes spare the process the signals of the terminal, which are for its parent.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
