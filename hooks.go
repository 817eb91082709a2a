package locker

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Hooks are functions that a Client calls at what happens, for metrics, traces and logs of the
// program's own. Any may be nil. They must be safe for concurrent use, and should return soon.
// None is called under a mutex, and all may call methods of the Client.
//
// LockStart and LockEnd, and the HoldEnd of an Unlock, are called in the goroutine of the call
// that they are about. If one of them blocks, that call takes longer, and if it panics, so does
// the call: then nothing is held, and nobody else is affected. The others, and the HoldEnd of
// a hold that ends in any other way, are called one after the other, in the order in which
// things happened, in a goroutine of the Client that does nothing else. If one of them blocks,
// those after it wait, and nothing else does; if it panics, that is logged at level Error, see
// WithLogger. Close waits for them, within its bound.
type Hooks struct {
	// LockStart is called when a call of Lock, TryLock or Do begins, and for each lock that
	// Campaign waits for; not if the arguments are refused. It returns the context for
	// LockEnd, which may carry values from the one to the other. It has no effect on the call.
	// If it is nil, that of the call is used.
	LockStart func(ctx context.Context, e LockStart) context.Context
	// LockEnd is called once for each LockStart, when the lock is held or could not be had; in
	// the case of Do and Campaign before their function is called.
	LockEnd func(ctx context.Context, e LockEnd)
	// HoldEnd is called once for each LockEnd without an error, after it. The HoldEnd of an
	// Unlock is called when Unlock is about to return.
	HoldEnd func(e HoldEnd)

	// SessionStart is called when a session has been opened: by NewSession or AdoptSession,
	// or by the Client for its locks.
	SessionStart func(e SessionStart)
	// Renewal is called when the lease of a session was renewed, or lost while etcd was asked to
	// renew it. That happens every third of the TTL.
	Renewal func(e Renewal)
	// SessionEnd is called once for each SessionStart, when the session is over, after the
	// HoldEnd of each of its holds that had been reported as held by then.
	SessionEnd func(e SessionEnd)

	// WatchReset is called when the stream of all watches of the Client has ended, and they are
	// opened again. They miss nothing by that, but what they report is late.
	WatchReset func(e WatchReset)
}

// LockStart describes the begin of a call that locks.
type LockStart struct {
	Name string // the first one, if there are several
	Verb string // "Lock", "TryLock", "Do" or "Campaign"
}

// LockEnd describes the outcome of a call that locks.
type LockEnd struct {
	Name   string
	Verb   string
	Token  int64         // 0 with an error
	Waited time.Duration // since LockStart
	Ahead  int           // how many entries were found ahead in the queue, 0 if that is not known
	Err    error         // why nothing is held; nil if Lock is
	Lock   *Lock         // nil with an error; also identifies the hold in HoldEnd
}

// HoldEnd describes the end of a hold.
type HoldEnd struct {
	Name  string
	Token int64
	Held  time.Duration // from when it was held until its context ended
	Cause error         // that of its context: *LostError, ErrReleased or ErrClosed
	Lock  *Lock
}

// SessionStart describes a session that was opened.
type SessionStart struct {
	Lease clientv3.LeaseID
	TTL   time.Duration // as granted by etcd, without a lock-delay
}

// Renewal describes how a lease was renewed, or was not.
type Renewal struct {
	Lease    clientv3.LeaseID
	Took     time.Duration // from the first request until the answer
	Left     time.Duration // from the answer until the deadline as it was before; 0 if it had passed
	Attempts int           // requests that were made for it
	Err      error         // why the session is lost; nil if the lease was renewed
}

// SessionEnd describes the end of a session.
type SessionEnd struct {
	Lease clientv3.LeaseID
	Cause error // *LostError or ErrClosed
}

// WatchReset describes why watches were opened again.
type WatchReset struct {
	// Cause is "disconnect" (the stream broke), "no answer" (its member was silent, and another
	// was not), "compaction" (etcd no longer had what a watch asked for), "refused" (by etcd, of
	// one watch) or "restore" (etcd was at an earlier revision than before).
	Cause string
}

// WithHooks adds hooks, which are called in the order in which they were added. The default is
// none, which costs nothing.
func WithHooks(h ...Hooks) Option {
	return func(c *Client) error {
		c.hooks = append(c.hooks, h...)
		return nil
	}
}

// hooks calls the functions of several Hooks.
type hooks []Hooks
