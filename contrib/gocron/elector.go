package gocronlocker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/jagregory/locker/v2"
)

// ErrNotLeader reports that another instance leads, or none does. The reason, if there is one,
// is in the chain.
var ErrNotLeader = errors.New("not the leader")

var errTooSoon = errors.New("the name has not been held for the splay yet")

// retryPause is the pause before etcd is asked again after it has refused.
const retryPause = time.Second

// An Elector is a gocron.Elector, for gocron.WithDistributedElector. Of the instances that
// have one on the same name, one is the leader and runs all jobs. All methods are safe for
// concurrent use.
//
// No two instances lead at one time: IsLeader compares the deadline of the lease with the
// clock, so an instance that is disconnected, or was stopped, is no leader any more before
// another one may be (with the assumptions on clocks, and the exceptions, in the documentation
// of package locker). And an instance leads only after it has held the name for the splay, see
// WithSplay, so a tick that its predecessor has run does not run again as long as the
// instances come to the same tick less than the splay apart.
//
// Until another leads, ticks of all jobs are missed: for up to the TTL of the client and the
// splay if the leader was killed or disconnected (more with locker.WithLockDelay), and for
// the splay after Stop.
type Elector struct {
	config
	client *locker.Client
	name   string
	value  string

	ctx  context.Context // ends with Stop
	stop context.CancelFunc
	done chan struct{} // closed when the campaign is over

	term    atomic.Pointer[term]
	failure atomic.Pointer[error] // why the last campaign has failed
}

var _ gocron.Elector = (*Elector)(nil)

// term is one hold of the name.
type term struct {
	lock  *locker.Lock
	since time.Time
}

// NewElector returns an Elector that campaigns for name, with a value for others to read,
// until it is stopped: also after a loss, and after errors of etcd. It does not block. c
// remains the caller's: call Stop before it is closed. An Elector ends with its client, too.
//
// Errors: locker.ErrInvalid as *locker.InvalidError for a nil client, a bad name or a bad
// option.
func NewElector(c *locker.Client, name, value string, opts ...Option) (*Elector, error) {
	cfg, err := configure(c, name, opts)
	if err != nil {
		return nil, wrap("new elector", err)
	}
	e := &Elector{config: cfg, client: c, name: name, value: value, done: make(chan struct{})}
	e.ctx, e.stop = context.WithCancel(context.Background())
	go e.campaign()
	return e, nil
}

// IsLeader returns nil if this instance leads now. gocron calls it when a tick is due, and runs
// the job then. It makes no request and does not block; ctx is not used.
//
// Errors: ErrNotLeader, together with locker.ErrLost as *locker.LostError if the name was
// lost, locker.ErrClosed after Stop and after the end of the client, or the reason why etcd
// refused.
func (e *Elector) IsLeader(context.Context) error {
	if e.ctx.Err() != nil {
		return notLeader(locker.ErrClosed)
	}
	t := e.term.Load()
	if t == nil {
		if failure := e.failure.Load(); failure != nil {
			return notLeader(*failure)
		}
		return notLeader(nil)
	}
	if err := t.lock.Err(); err != nil {
		return notLeader(err)
	}
	if e.clock.Since(t.since) < e.splay {
		return notLeader(errTooSoon)
	}
	return nil
}

// notLeader returns ErrNotLeader with its reason, nil if there is none.
func notLeader(reason error) error {
	if reason == nil {
		return wrap("is leader", ErrNotLeader)
	}
	return wrap("is leader", fmt.Errorf("%w: %w", ErrNotLeader, reason))
}

// Stop ends the campaign and, if this instance leads, gives the name to the next one. From the
// call on, IsLeader returns an error; jobs that run are not waited for, so shut the scheduler
// down before. Stop blocks until the goroutine of the Elector has ended and etcd has confirmed
// the release, for at most 10 s, or the TTL if that is shorter. If ctx ends before, it returns
// its cause, and the rest goes on in the background. Stop is idempotent, and does not close the
// client.
//
// Errors: the cause of ctx; locker.ErrInvalid for a nil context; locker.ErrClosed or
// locker.ErrEtcdClosed if the campaign ended with the client; and what kept the release from
// being confirmed.
func (e *Elector) Stop(ctx context.Context) error {
	if ctx == nil {
		return wrap("stop", &locker.InvalidError{Argument: "context", Value: "nil", Problem: "for a call without a bound there is context.Background"})
	}
	e.stop()
	select {
	case <-e.done:
	case <-ctx.Done():
		return wrap("stop", context.Cause(ctx))
	}
	if failure := e.failure.Load(); failure != nil {
		return wrap("stop", *failure)
	}
	return nil
}

// campaign holds the name whenever it can, until the Elector is stopped or its client is
// closed.
func (e *Elector) campaign() {
	defer close(e.done)
	for {
		err := e.client.Campaign(e.ctx, e.name, e.value, e.lead)
		if e.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // by Stop
		}
		e.fail(err)
		if e.ctx.Err() != nil || errors.Is(err, locker.ErrClosed) || errors.Is(err, locker.ErrEtcdClosed) {
			return
		}
		pause := time.NewTimer(retryPause)
		select {
		case <-pause.C:
		case <-e.ctx.Done():
			pause.Stop()
		}
	}
}

// lead is one term. It ends with Stop, or with the loss of the name.
func (e *Elector) lead(ctx context.Context, lock *locker.Lock) error {
	e.fail(nil)
	e.term.Store(&term{lock, e.clock.Now()})
	<-ctx.Done()
	return nil
}

// fail keeps the error of a campaign, nil if it went well. A later one replaces that of a loss.
func (e *Elector) fail(err error) {
	if err == nil {
		e.failure.Store(nil)
		return
	}
	e.failure.Store(&err)
	e.term.Store(nil)
}
