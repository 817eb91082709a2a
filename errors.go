package locker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Sentinel errors, for errors.Is. Those that carry details come as the type that is named
// beside them, for errors.As. An error of etcd, and the cause of a context that ended a
// call, are in the chain as well.
var (
	ErrLocked   = errors.New("locked by another holder") // *LockedError; of a wait, look at the cause of its context first
	ErrNotFound = errors.New("not locked")               // *NotFoundError
	ErrLost     = errors.New("lock lost")                // *LostError
	ErrInvalid  = errors.New("invalid argument")         // *InvalidError

	// ErrReleased is the cause of the end of a hold that was given up by Unlock.
	ErrReleased = errors.New("lock released")
	// ErrClosed reports that the Client or the Session was closed.
	ErrClosed = errors.New("closed")
	// ErrInDoubt reports that the outcome of a write is not known: it may have been
	// applied, or may be applied later. What is known of the reason is in the chain.
	ErrInDoubt = errors.New("outcome in doubt")
	// ErrEtcdClosed reports that the etcd client that New has borrowed was closed. It is
	// also the cause of the holds that were lost because of that.
	ErrEtcdClosed = errors.New("the etcd client was closed")
	// ErrSessionFull reports that a Session of the caller's own has as many entries as a
	// lease should carry. A Client's shared sessions are never full: it opens another.
	ErrSessionFull = errors.New("session full")
)

// A LockedError reports who kept TryLock from taking a name. It matches ErrLocked. It is also
// part of the error of a Lock, Do or Campaign whose context ended while somebody was in the
// way, if etcd says so at once; the cause of the context is in the chain as well.
type LockedError struct {
	// Holder has the Name that refused. It has the rest as well, unless nobody held the name
	// at that moment: it was passing from one holder to the next, or this client is about to
	// ask for it. Then the Token is 0. If several hold the name, it is the oldest of them,
	// although somebody who waits may be what is in the way.
	Holder Holder
	// Owner is the process that holds it; zero if that is not known.
	Owner Owner
}

func (e *LockedError) Error() string {
	if e.Holder.Token == 0 {
		return "locked by another holder"
	}
	text := fmt.Sprintf("locked by the holder of token %d (%s), lease %x", e.Holder.Token, quote(e.Holder.Value), int64(e.Holder.Lease))
	if e.Owner.PID != 0 {
		text += fmt.Sprintf(", %s, process %d on %s", quote(e.Owner.Program), e.Owner.PID, quote(e.Owner.Host))
	}
	return text
}

// Is reports whether target is ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// waitError is the error of a wait that was ended while somebody was in the way.
type waitError struct {
	err    error // why it was ended
	locked *LockedError
}

func (e *waitError) Error() string   { return e.err.Error() + "; " + e.locked.Error() }
func (e *waitError) Unwrap() []error { return []error{e.err, e.locked} }

// A NotFoundError reports that nobody holds a name or, from ForceUnlock, that there is no
// entry with that token in its queue. It matches ErrNotFound.
type NotFoundError struct {
	Name  string
	Token int64 // 0 unless it was asked for
}

func (e *NotFoundError) Error() string {
	if e.Token != 0 {
		return fmt.Sprintf("nobody has token %d in the queue of %s", e.Token, quote(e.Name))
	}
	return "nobody holds " + quote(e.Name)
}

// Is reports whether target is ErrNotFound.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// A Reason is how a hold was lost.
type Reason int

const (
	// Expired: the lease could not be renewed in time. Until the deadline nobody else could
	// hold the name; after it, somebody may.
	Expired Reason = iota + 1
	// Revoked: the lease was gone from etcd, or had to be given up.
	Revoked
	// Deleted: the entry was removed from the queue by somebody else.
	Deleted
)

func (r Reason) String() string {
	switch r {
	case Expired:
		return "expired"
	case Revoked:
		return "revoked"
	case Deleted:
		return "deleted"
	}
	return "Reason(" + strconv.Itoa(int(r)) + ")"
}

// A LostError reports that a hold, or a place in the queue, was lost, or a Session. It is
// final: the same Lock never holds again. It matches ErrLost.
type LostError struct {
	Name   string // empty if it was a Session that was lost
	Token  int64  // 0 if it was not in the queue yet
	Reason Reason
	Cause  error // why, as far as is known; may be nil
}

func (e *LostError) Error() string {
	text := "lock lost: "
	if e.Name == "" {
		text = "session lost: "
	}
	text += e.Reason.String()
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

// Is reports whether target is ErrLost.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// Unwrap returns the Cause.
func (e *LostError) Unwrap() error { return e.Cause }

// An InvalidError reports which argument cannot be used, and why. No request was made. It
// matches ErrInvalid.
type InvalidError struct {
	Argument string // what it is: "name", "TTL", "prefix" and so on
	Value    string // as given; abbreviated if it is very long
	Problem  string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid %s %s: %s", e.Argument, e.Value, e.Problem)
}

// Is reports whether target is ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// wrap gives an error the form in which it leaves the package.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &callError{op, name, err}
}

// callError is the error of a call. Its text is made only when it is asked for: many calls
// may fail at once.
type callError struct {
	op, name string // of the call, and what it was about, if anything
	err      error
}

func (e *callError) Error() string {
	text := "locker: " + e.op
	if e.name != "" {
		text += " " + quote(e.name)
	}
	return text + ": " + e.err.Error()
}

func (e *callError) Unwrap() error { return e.err }

// quote quotes a text. One that is too long for a message is abbreviated, between two
// characters.
func quote(text string) string {
	const limit = 100
	if len(text) <= limit {
		return strconv.Quote(text)
	}
	end := limit
	for end > limit-utf8.UTFMax && !utf8.RuneStart(text[end]) {
		end--
	}
	return strconv.Quote(text[:end]) + "…"
}

// inDoubt adds ErrInDoubt to the error of a write.
func inDoubt(err error) error { return fmt.Errorf("%w: %w", ErrInDoubt, err) }

var errRepeated = errors.New("etcd's client sent it more than once")

var errBackInTime = errors.New("etcd has gone back to an earlier revision")

var errNested = &InvalidError{"option", "of And", "within And there are only WithShared and WithLimit"}

// Errors of calls on a value that neither New nor a call of its Client has made.
var (
	errZeroClient  = &InvalidError{"client", "{}", "it is the zero value, use New"}
	errZeroLock    = &InvalidError{"lock", "{}", "it is the zero value, use New and Client.Lock"}
	errZeroSession = &InvalidError{"session", "{}", "it is the zero value, use New and Client.NewSession"}
	errZeroCompat  = &InvalidError{"compat", "{}", "it is the zero value, use NewCompat"}
)

// endedContext returns a context that has ended with the cause: that of a value that cannot
// be used.
func endedContext(cause error) context.Context {
	ctx, end := context.WithCancelCause(context.Background())
	end(cause)
	return ctx
}
