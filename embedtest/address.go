package embedtest

import "fmt"

// An address is a port on 127.0.0.1 that is reserved from newAddress until release,
// whether or not a member listens on it. So a member's address is known before the member
// starts, as its peers and its advertised URLs require, and no other process can take the
// port while the member is stopped.
type address struct {
	port   int
	socket boundSocket
}

func (a *address) String() string {
	return fmt.Sprintf("127.0.0.1:%d", a.port)
}
