//go:build unix && !solaris && !aix

package embedtest

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// reusePort lets a member listen on a port that is reserved.
const reusePort = true

// A boundSocket is a socket that is bound but never listens. The kernel assigns its port
// to no other process and refuses connections to it, but lets the members listen on it,
// because both sides set SO_REUSEPORT.
type boundSocket int

func newAddress() (*address, error) {
	// A child forked between the two calls must not inherit the socket.
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	port, err := bind(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &address{port: port, socket: boundSocket(fd)}, nil
}

func bind(fd int) (port int, err error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return 0, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return name.(*unix.SockaddrInet4).Port, nil
}

func (a *address) release() error {
	return os.NewSyscallError("close", unix.Close(int(a.socket)))
}
