package txn

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// endError is the cause of the end of a context. It asks for it when somebody wants to
// know: of one context many calls may end at once, and Cause takes its mutex.
type endError struct {
	ctx  context.Context
	last error // that was heard from etcd; nil if nothing was asked
}

func (e *endError) Error() string {
	text := context.Cause(e.ctx).Error()
	switch {
	case e.last == errNoAnswer:
		return text + " (no answer from etcd)"
	case e.last != nil:
		return text + " (etcd: " + e.last.Error() + ")"
	}
	return text
}

func (e *endError) Unwrap() []error {
	causes := []error{context.Cause(e.ctx)}
	if e.last != nil && e.last != errNoAnswer {
		causes = append(causes, e.last)
	}
	return causes
}

// Ended is the error of a call that its context ended: the context's cause, with
// the last that was heard from etcd, which is why it had not been done by then.
func Ended(ctx context.Context, last error) error {
	if IsContextError(last) {
		last = errNoAnswer
	}
	return &endError{ctx, last}
}

var errNoAnswer = errors.New("no answer from etcd")

// Transient reports whether a request that failed with err is worth repeating.
// The outcome of a transient failure is unknown: the request may yet take effect.
// Any other error is etcd's refusal, which left no effect (but see Unsure).
func Transient(err error) bool {
	if IsContextError(err) || errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	switch code(err) {
	// Unknown has "raft proposal dropped" and other passing troubles of a leader
	// change, which the server does not map to a code.
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.Internal, codes.Unknown:
		return true
	}
	return false
}

// Unsure reports whether a transaction that failed with err may have been applied, or
// may yet be. One that runs into the limit of etcd's space has been, although it is
// answered with an error.
func Unsure(err error) bool { return Transient(err) || errors.Is(err, rpctypes.ErrNoSpace) }

// IsContextError reports whether err is that of a context that has ended.
func IsContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// code returns the gRPC code of what etcd's client returned: one of its own
// errors, or a status.
func code(err error) codes.Code {
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return etcd.Code()
	}
	return status.Code(err)
}
