package txn

import (
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Outcome is what became of an attempt at a write. State says it in a word.
type Outcome struct {
	Resp *pb.TxnResponse // of this attempt, if Err is nil
	Err  error
	Only bool // there was no other attempt at the write

	repeated bool // it was sent more than once, and what became of the others is not known
}

// State is one of three: applied, refused, in doubt.
type State int

const (
	// Applied: etcd has answered that the compares held, and what was to be written is
	// written.
	Applied State = iota + 1
	// Refused: what was to be written was not, nor will be.
	Refused
	// InDoubt: the attempt may have been applied, or may be applied later; or the request was
	// sent more than once, and one of the others may be.
	InDoubt
)

// State returns what became of the attempt. An answer by itself leaves no doubt; but if the
// request was sent more than once, it is not known what became of the others.
func (o Outcome) State() State {
	switch {
	case o.repeated || o.Err != nil && Unsure(o.Err) && !errors.Is(o.Err, ErrUnsent):
		return InDoubt
	case o.Err == nil && o.Resp.Succeeded:
		return Applied
	}
	return Refused
}

// ErrUnsent is the outcome of a write that was never sent.
var ErrUnsent = errors.New("not sent")

// certain reports whether etcd has answered, even if with a refusal.
func (o Outcome) certain() bool { return o.Err == nil || !Transient(o.Err) }
