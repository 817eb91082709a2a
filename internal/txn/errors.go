package txn

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// endError is the error of a call that was ended by its context. It asks for the cause only
// when that is needed: many calls may end with one context at once, and context.Cause takes
// the mutex of the context.
type endError struct {
	ctx  context.Context
	last error // error of etcd; nil if nothing was asked
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

// Ended returns the error of a call that was ended by ctx: the cause of ctx, with the last
// error from etcd, which is why the call was not done by then: nil if nothing was asked, an
// error of a context if there was no answer.
func Ended(ctx context.Context, last error) error {
	if IsContextError(last) {
		last = errNoAnswer
	}
	return &endError{ctx, last}
}

var errNoAnswer = errors.New("no answer from etcd")

// Transient reports whether a request that failed with err is worth repeating. The outcome
// of a transient failure is unknown: the request may yet take effect. Any other error is a
// refusal by etcd, which has no effect (but see Unsure).
func Transient(err error) bool {
	if IsContextError(err) || errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	switch code(err) {
	// Unknown includes "raft proposal dropped" and other transient failures during a change
	// of leader, which the server does not map to a code.
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Aborted, codes.Internal, codes.Unknown:
		return true
	}
	return false
}

// Unsure reports whether a transaction that failed with err may have been applied, or may
// yet be. A transaction that exceeds etcd's space is applied, although the answer is an
// error.
func Unsure(err error) bool { return Transient(err) || errors.Is(err, rpctypes.ErrNoSpace) }

// IsContextError reports whether err is that of a context that has ended.
func IsContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// code returns the gRPC code of an error of etcd's client, which is one of its own or a
// status.
func code(err error) codes.Code {
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return etcd.Code()
	}
	return status.Code(err)
}
