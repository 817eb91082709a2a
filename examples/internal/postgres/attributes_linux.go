package postgres

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// attributes returns how the processes are started that work in dir: Ctrl-C does not reach them,
// and they do not outlive this process. Postgres refuses to run as root; there its own user runs
// it, and gets dir.
func attributes(dir string) (*syscall.SysProcAttr, error) {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGQUIT}
	if os.Getuid() != 0 {
		return a, nil
	}
	u, err := user.Lookup("postgres") // Debian's package adds it
	if err != nil {
		return nil, fmt.Errorf("cannot run Postgres as root: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	a.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return a, os.Chown(dir, int(uid), int(gid))
}
