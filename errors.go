package locker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// What an error is about, for errors.Is. The types below carry the details, for
// errors.As. An error of etcd, and the cause of a context that ended a call, can
// be found in the chain as well.
var (
	ErrLocked   = errors.New("locked by another holder") // *LockedError
	ErrNotFound = errors.New("not locked")               // *NotFoundError
	ErrLost     = errors.New("lock lost")                // *LostError
	ErrInvalid  = errors.New("invalid argument")         // *InvalidError

	// ErrReleased is the cause of a hold that was given up by Unlock.
	ErrReleased = errors.New("lock released")
	// ErrClosed says that the Client or the Session was closed.
	ErrClosed = errors.New("closed")
	// ErrInDoubt says that it is not known what has become of a write: it may have been
	// applied, or be applied later. What is known of why is in the chain.
	ErrInDoubt = errors.New("outcome in doubt")
	// ErrEtcdClosed says that the etcd client, which New has borrowed, was closed. It is
	// also the cause of the holds that were lost by that.
	ErrEtcdClosed = errors.New("the etcd client was closed")
	// ErrSessionFull says that a Session of the caller's own has as many entries
	// as a lease should carry. The sessions that a Client opens by itself are
	// never full: it opens another.
	ErrSessionFull = errors.New("session full")
)

// LockedError says who kept TryLock from taking a name.
type LockedError struct {
	// Holder has the Name and, unless the name was just passing from one holder
	// to the next, the rest as well (the Token is 0 if not).
	Holder Holder
}

func (e *LockedError) Error() string {
	if e.Holder.Token == 0 {
		return "locked by another holder"
	}
	return fmt.Sprintf("locked by the holder of token %d (%s)", e.Holder.Token, quote(e.Holder.Value))
}

// Is matches ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// NotFoundError says that nobody holds a name.
type NotFoundError struct{ Name string }

func (e *NotFoundError) Error() string { return "nobody holds " + quote(e.Name) }

// Is matches ErrNotFound.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// Reason says how a hold was lost.
type Reason int

const (
	// Expired: the lease could not be renewed in time. Until the deadline nobody
	// else could hold the name; after it, somebody may.
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

// LostError says that a hold, or a place in the queue, was taken away. It is
// final: the same Lock never holds again.
type LostError struct {
	Name   string // empty if it was a Session that was lost
	Token  int64  // 0 if it was not yet in the queue
	Reason Reason
	Cause  error // what is known of why; may be nil
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

// Is matches ErrLost.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// Unwrap returns the Cause.
func (e *LostError) Unwrap() error { return e.Cause }

// InvalidError says which argument cannot be used, and why. No request was made.
type InvalidError struct {
	Argument string // what it is: "name", "TTL", "prefix", …
	Value    string // as given; abbreviated if very long
	Problem  string
}

func (e *InvalidError) Error() string {
	return fmt.Sprintf("invalid %s %s: %s", e.Argument, e.Value, e.Problem)
}

// Is matches ErrInvalid.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

// wrap gives an error the form in which it leaves the package.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &callError{op, name, err}
}

// callError is the error of a call. Its text is made when somebody asks for it: many
// calls may fail at once.
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

// quote abbreviates what is too long for a message, between two characters.
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

// The errors of a call of what New, or a call of its Client, has not made.
var (
	errZeroClient  = &InvalidError{"client", "{}", "it is the zero value, use New"}
	errZeroLock    = &InvalidError{"lock", "{}", "it is the zero value, use New and Client.Lock"}
	errZeroSession = &InvalidError{"session", "{}", "it is the zero value, use New and Client.NewSession"}
	errZeroCompat  = &InvalidError{"compat", "{}", "it is the zero value, use NewCompat"}
)

// endedContext is the context of what is no use, and why it is none.
func endedContext(cause error) context.Context {
	ctx, end := context.WithCancelCause(context.Background())
	end(cause)
	return ctx
}
