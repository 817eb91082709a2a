package txn

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Outcome is what became of an attempt at a write.
type Outcome struct {
	Resp *pb.TxnResponse // of this attempt, if Err is nil
	Err  error
	Only bool // there was no other attempt

	repeated bool // it was sent more than once, and what became of the others is not known
}

// State says which of three things an Outcome is.
type State int

const (
	// Applied: etcd has answered that the compares held, and what was to be written is.
	Applied State = iota
	// Refused: nothing was written, nor will be.
	Refused
	// InDoubt: the attempt may have been applied, or may yet be, once more than is known.
	InDoubt
)

// State returns which it is. An answer is not in doubt itself, but if the request was sent
// more than once, what became of the others is.
func (o Outcome) State() State {
	switch {
	case o.repeated || o.Err != nil && Unsure(o.Err) && !errors.Is(o.Err, ErrUnsent):
		return InDoubt
	case o.Err == nil && o.Resp.Succeeded:
		return Applied
	}
	return Refused
}

// ErrUnsent is the outcome of a write that never left.
var ErrUnsent = errors.New("not sent")

// certain reports whether etcd has answered, be it with a refusal.
func (o Outcome) certain() bool { return o.Err == nil || !Transient(o.Err) }
