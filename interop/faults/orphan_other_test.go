//go:build unix && !linux

package faults

import "syscall"

// attributes spare a client process the signals of the terminal.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
