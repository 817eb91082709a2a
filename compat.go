package locker

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// Compat has the calls of the original Locker, with their channels, on top of a Client. It
// is safe for concurrent use.
//
// Deprecated: use [Client], whose calls take contexts and return handles. Compat will
// remain supported: programs that use it need not change.
type Compat struct {
	client *Client // nil if broken is set
	broken error   // why there is no client
	owner  bool    // Close closes the client
	tasks  tasks.Group
	ctx    context.Context // ends with Close
	end    context.CancelCauseFunc
}

// compatTTL is the TTL of the original. Its directory, "locker", is the default prefix.
const compatTTL = 5 * time.Second

// NewCompat returns the original's calls on etcd, with the original's defaults: the
// directory "locker" and a TTL of 5 s. It makes no request. If etcd is nil, or New would
// refuse it for another reason, every call returns the error of New.
//
// Deprecated: use [New].
func NewCompat(etcd *clientv3.Client) *Compat {
	client, err := New(etcd, WithTTL(compatTTL))
	c := newCompat(client)
	c.broken, c.owner = err, err == nil
	return c
}

// Compat returns the original's calls on c, with its prefix and TTL. Closing it leaves c
// open.
//
// Deprecated: use the methods of [Client].
func (c *Client) Compat() *Compat {
	compat := newCompat(c)
	compat.broken = wrap("call", "", c.usable())
	return compat
}

// newCompat returns the original's calls on client.
func newCompat(client *Client) *Compat {
	c := &Compat{client: client}
	c.ctx, c.end = context.WithCancelCause(context.Background())
	return c
}

// Close ends all calls, which return ErrClosed, gives up their locks, and closes the Client
// if it was made by NewCompat. It blocks as Client.Close does, and returns its error. Close
// is idempotent.
func (c *Compat) Close() error {
	if c == nil || c.end == nil {
		return wrap("close", "", errZeroCompat)
	}
	c.tasks.Close()
	c.end(ErrClosed)
	c.tasks.Join()
	if c.owner {
		return c.client.Close()
	}
	return nil
}

// Lock locks name with value and keeps it locked. It blocks until something is sent to quit
// or quit is closed; then it gives the lock up, at once, and returns nil.
//
// owned reports whether name is owned: first the outcome of the first attempt, then each
// change, so that true and false alternate. Nothing waits for its reader: the lock is kept,
// and a reader that comes late gets the newest value. owned is never closed. Both channels
// may be nil.
//
// When the lock is lost, Lock contends for it again. It returns an error if etcd has not
// answered for the TTL; if the lock was owned, it first sends false to owned, and waits for
// its reader for at most another TTL. It also returns an error if etcd refuses, for a bad
// name, and after Close.
//
// Deprecated: use [Client.Campaign], or [Client.Lock] for a single hold.
func (c *Compat) Lock(name, value string, owned chan<- bool, quit <-chan bool) error {
	return relay(c, owned, quit, func(ctx context.Context, report func(bool)) error {
		for pause := (backoff.Pause{}); ; {
			began := time.Now()
			err := c.own(ctx, name, value, report)
			if time.Since(began) > c.client.ttl {
				pause = backoff.Pause{}
			}
			var lost *LostError
			if !errors.As(err, &lost) || lost.Reason == Expired && !c.reachable(ctx, name) || pause.Wait(ctx) != nil {
				return err
			}
		}
	})
}

// reachable reports whether etcd answers. If it does, the lock was lost because this
// process had stopped.
func (c *Compat) reachable(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, c.client.ttl/3)
	defer cancel()
	_, err := c.get(ctx, name)
	return err == nil || errors.Is(err, ErrNotFound)
}

// own locks name, reports that, and returns when the lock has ended or cannot be acquired.
func (c *Compat) own(ctx context.Context, name, value string, report func(bool)) error {
	l, err := c.try(ctx, name, value)
	if errors.Is(err, ErrLocked) {
		report(false)
		waiting, stop := c.answered(ctx, name)
		l, err = c.client.Lock(waiting, name, value)
		stop()
	}
	if err != nil {
		return err
	}
	report(true)
	select {
	case <-l.Context().Done():
		report(false)
		return l.Err()
	case <-ctx.Done():
		// What is not confirmed soon is completed by the Client.
		soon, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = l.Unlock(soon)
		return context.Cause(ctx)
	}
}

// try tries once to lock name, and finds out within the TTL whether etcd answers.
func (c *Compat) try(ctx context.Context, name, value string) (*Lock, error) {
	ctx, cancel := context.WithTimeout(ctx, c.client.ttl)
	defer cancel()
	return c.client.TryLock(ctx, name, value)
}

// answered returns a copy of ctx that also ends when etcd has not answered for the TTL,
// with that error: in that case a Client waits, where the original returned.
func (c *Compat) answered(ctx context.Context, name string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	asked := make(chan struct{})
	c.tasks.Run(func() {
		defer close(asked)
		for backoff.Sleep(ctx, c.client.ttl/3) == nil {
			if _, err := c.get(ctx, name); err != nil && !errors.Is(err, ErrNotFound) {
				cancel(errors.Unwrap(err)) // the call that it ends wraps it
			}
		}
	})
	return ctx, func() {
		cancel(nil)
		<-asked
	}
}

// Watch sends the value of name to valueChanges: at once, and then after each change; "" if
// nobody holds it. It blocks until something is sent to quit or quit is closed, and then
// returns nil. Nothing waits for the reader of valueChanges: a reader that comes late gets
// the newest value. valueChanges is never closed. Both channels may be nil.
//
// It returns an error if etcd has not answered for the TTL, if etcd refuses, for a bad
// name, and after Close.
//
// Deprecated: use [Client.Watch].
func (c *Compat) Watch(name string, valueChanges chan<- string, quit <-chan bool) error {
	return relay(c, valueChanges, quit, func(ctx context.Context, report func(string)) error {
		ctx, stop := c.answered(ctx, name)
		defer stop()
		for state, err := range c.client.Watch(ctx, name) {
			if err != nil {
				return err
			}
			report(state.Value)
		}
		return context.Cause(ctx)
	})
}

// Get returns the value of name. If nobody holds it, the error is a LockNotFound, not
// wrapped. Get blocks until etcd has answered, at most for the TTL.
//
// Deprecated: use [Client.Get].
func (c *Compat) Get(name string) (string, error) {
	if err := c.usable(); err != nil {
		return "", err
	}
	holder, err := c.get(c.ctx, name)
	if errors.Is(err, ErrNotFound) {
		return "", LockNotFound{name}
	}
	return holder.Value, err
}

// get is Client.Get for at most the TTL.
func (c *Compat) get(ctx context.Context, name string) (Holder, error) {
	ctx, cancel := context.WithTimeout(ctx, c.client.ttl)
	defer cancel()
	return c.client.Get(ctx, name)
}

// usable returns why there is no Client, nil if there is one.
func (c *Compat) usable() error {
	if c == nil || c.end == nil {
		return wrap("call", "", errZeroCompat)
	}
	return c.broken
}

// relay runs work in a goroutine and sends on out what work reports: the newest value, and
// only if it differs from the one before. It returns what work returns, or nil after a
// quit; the goroutine has ended then.
func relay[T comparable](c *Compat, out chan<- T, quit <-chan bool, work func(ctx context.Context, report func(T)) error) error {
	if err := c.usable(); err != nil {
		return err
	}
	if !c.tasks.Begin() {
		return wrap("call", "", ErrClosed)
	}
	defer c.tasks.End()
	select {
	case <-quit:
		return nil
	default:
	}
	ctx, cancel := context.WithCancel(c.ctx)
	updates, done := make(chan T), make(chan error, 1)
	c.tasks.Run(func() {
		done <- work(ctx, func(v T) {
			select {
			case updates <- v:
			case <-ctx.Done():
			}
		})
	})
	var (
		newest, sent T
		begun        bool             // a value was sent
		to           chan<- T         // out, while newest has yet to be sent
		failure      error            // what work has returned
		enough       <-chan time.Time // when to stop waiting for the reader after that
		closed       <-chan struct{}  // closed when c is, after that
	)
	quitting := func() error {
		cancel()
		if done != nil {
			<-done
		}
		return nil
	}
	defer cancel()
	for {
		select { // first of all: nothing is sent after a quit
		case <-quit:
			return quitting()
		default:
		}
		select {
		case <-quit:
			return quitting()
		case v := <-updates:
			newest, to = v, nil
			if !begun || v != sent {
				to = out
			}
			select {
			case to <- newest: // a reader that is waiting misses nothing
				sent, begun, to = newest, true, nil
			default:
			}
		case to <- newest:
			sent, begun, to = newest, true, nil
		case failure = <-done:
			done = nil
			enough, closed = time.After(c.client.ttl), c.ctx.Done()
		case <-enough:
			return failure
		case <-closed:
		}
		switch {
		case done == nil && c.ctx.Err() != nil:
			return wrap("call", "", ErrClosed)
		case done == nil && to == nil:
			return failure
		}
	}
}

// LockNotFound reports that nobody holds the lock. It matches ErrNotFound.
//
// Deprecated: use ErrNotFound, or *NotFoundError.
type LockNotFound struct{ name string }

func (e LockNotFound) Error() string { return "Lock not found: " + e.name }

// Is reports whether target is ErrNotFound.
func (e LockNotFound) Is(target error) bool { return target == ErrNotFound }

// LockDenied reports that somebody else holds the lock. No call returns it: Lock reports
// that on its owned channel. It matches ErrLocked.
//
// Deprecated: use ErrLocked, or *LockedError.
type LockDenied struct{ name string }

func (e LockDenied) Error() string { return "Lock attempt was denied: " + e.name }

// Is reports whether target is ErrLocked.
func (e LockDenied) Is(target error) bool { return target == ErrLocked }
