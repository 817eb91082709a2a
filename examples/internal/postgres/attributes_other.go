//go:build !linux

package postgres

import "syscall"

func attributes(string) (*syscall.SysProcAttr, error) { return nil, nil }
