//go:build !unix || solaris || aix

package embedtest

import "net"

const reusePort = false

// A port cannot be reserved on this system. It was free a moment ago, and systems rarely
// assign the same port again soon.
type boundSocket struct{}

func newAddress() (*address, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &address{port: l.Addr().(*net.TCPAddr).Port}, l.Close()
}

func (a *address) release() error { return nil }
