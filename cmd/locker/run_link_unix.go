//go:build unix

package main

import (
	"encoding/json"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// order is what locker tells the guard.
type order struct {
	Term, Kill time.Duration  // when the command is to end, by now; both or none
	Signal     syscall.Signal // for the command; 0 for none
}

// report is what the guard tells locker. One of the fields is set.
type report struct {
	Group   int            // the process group of the command, which has started
	Stopped syscall.Signal // the command was stopped by it
	Exited  *int           // exit code of the command
	Failed  *failure       // the command could not be started
}

// failure is why a command could not be started.
type failure struct {
	Code int
	Text string
}

// link is the connection between locker and the guard. If one of them dies, however that
// happens, the other one reads its end.
type link struct {
	conn net.Conn
	in   *json.Decoder
}

// newLink returns a link over a socket, which it closes.
func newLink(socket *os.File) (*link, error) {
	conn, err := net.FileConn(socket)
	_ = socket.Close()
	if err != nil {
		return nil, err
	}
	return &link{conn, json.NewDecoder(conn)}, nil
}

// sockets returns the two ends of a link. Nobody inherits the first.
func sockets() (own, others *os.File, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	ends, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	syscall.CloseOnExec(ends[0])
	return os.NewFile(uintptr(ends[0]), "locker"), os.NewFile(uintptr(ends[1]), "guard"), nil
}

// inherited returns the end of a link that was passed on as a file descriptor.
func inherited(number string) (*link, error) {
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return newLink(os.NewFile(uintptr(fd), "locker"))
}

// send sends an order or a report. It does not wait for a peer that was stopped.
func (l *link) send(message any) error {
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	return json.NewEncoder(l.conn).Encode(message)
}

// receive passes on what the peer sends, and closes the channel when the peer is gone.
func receive[T any](l *link) <-chan T {
	messages := make(chan T)
	go func() {
		defer close(messages)
		for {
			var message T
			if l.in.Decode(&message) != nil {
				return
			}
			messages <- message
		}
	}()
	return messages
}
