//go:build !unix || solaris || aix

package embedtest

import "net"

const reusePort = false

// There is no way to hold a port here. It was free a moment ago, and systems
// are slow to give the same one out again.
type hold struct{}

func newAddress() (*address, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return &address{port: l.Addr().(*net.TCPAddr).Port}, l.Close()
}

func (a *address) release() error { return nil }
