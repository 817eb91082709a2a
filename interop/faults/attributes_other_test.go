//go:build unix && !linux

package faults

import "syscall"

// attributes puts a client process into its own process group, away from the signals of
// the terminal.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
