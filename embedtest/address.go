package embedtest

import "fmt"

// An address is a port on 127.0.0.1 that is ours from newAddress to release,
// whether or not a member listens on it. So a member's address is known before
// it starts, which its peers and its advertised URLs need, and nobody can take
// the port while the member is stopped.
type address struct {
	port int
	hold hold
}

func (a *address) String() string {
	return fmt.Sprintf("127.0.0.1:%d", a.port)
}
