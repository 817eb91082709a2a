package gocronlocker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// ErrAlreadyRun reports that a tick is not for this instance because another, or this one,
// has started the job for it.
var ErrAlreadyRun = errors.New("the job was started for this tick")

const (
	namePrefix   = "gocron/"        // of the names of jobs, among all that the program may lock
	recordPrefix = "locker.gocron/" // of the keys of records, before that of the queue; no client locks there

	// patience is how long Lock waits for etcd. A tick that finds etcd away is late rather than
	// missed, unless that takes longer.
	patience = time.Minute
	// lead is how far a record may be ahead of the clock because of a difference of the clocks,
	// and because a call has waited. One that is further ahead was written by a clock that was
	// wrong, and would stop the job until that time if it counted.
	lead = time.Minute + patience
)

// A Locker is a gocron.Locker, for gocron.WithDistributedLocker and
// gocron.WithDistributedJobLocker. It makes one instance run each tick of a job. All methods
// are safe for concurrent use.
//
// No tick runs twice. While a job runs, its name is locked: gocron/NAME, below the prefix of
// the client. And when it starts, the Locker writes down the time, in a transaction that etcd
// applies only under the lock. An instance that comes to the same tick later, when the lock is
// free again, is refused because of that record, which outlives the instance that wrote it.
// The time is that of the instance's own clock, and so is a tick, so what the clocks differ by
// does not matter, up to a minute. What matters is how late an instance comes to a tick by its
// own clock: less than the splay, see WithSplay. One that was stopped for longer just before
// it called Lock is taken to come to another tick.
// gocron.LimitModeWait makes an instance late, because gocron calls Lock when a waiting run is
// to start: use gocron.LimitModeReschedule instead.
//
// A tick runs at most once: it is not repeated if its instance dies. An instance that is
// killed, or disconnected, while it runs a job or asks for it may keep its name locked until
// the lease expires, so ticks of that job are missed for up to the TTL of the client (more
// with locker.WithLockDelay). Otherwise none is missed while one instance reaches etcd. As with any
// locker of gocron, there is no tick while the job still runs for an earlier one.
//
// gocron does not tell a job that its lock was lost. Task does.
//
// In etcd the Locker keeps one key for each name of a job, which is not removed:
// locker.gocron/ and the key of the name's queue, for example
// locker.gocron/locker/gocron%2Fbackup. Its user needs permission to read and write there.
type Locker struct {
	config
	client *locker.Client

	mu   sync.Mutex // guards runs; nothing blocks under it
	runs map[<-chan struct{}]*run
}

var _ gocron.Locker = (*Locker)(nil)

// run is the gocron.Lock of one run of a job. What gocron hands to the job is a context
// that it has handed to Lock before, which is how Task finds it.
type run struct {
	*locker.Lock
	job   <-chan struct{} // Done of the context of the job
	owner *Locker
}

// NewLocker returns a Locker that locks by means of c, which remains the caller's: close it
// after the scheduler was shut down. NewLocker does not block and starts no goroutine.
//
// Errors: locker.ErrInvalid as *locker.InvalidError for a nil client or a bad option.
func NewLocker(c *locker.Client, opts ...Option) (*Locker, error) {
	cfg, err := configure(c, namePrefix, opts)
	if err != nil {
		return nil, wrap("new locker", err)
	}
	return &Locker{config: cfg, client: c, runs: make(map[<-chan struct{}]*run)}, nil
}

// Lock is called by gocron, with the context and the name of a job, when a tick of that job is
// due. It locks the name and takes the tick, or returns an error, which gocron reports to the
// listener of gocron.AfterLockError. It never waits for another instance. It blocks until
// etcd has answered, at most for a minute; ctx bounds that, and nothing else. After an error
// nothing is held; if etcd did not answer, the tick may be taken nevertheless.
//
// Errors: ErrAlreadyRun; locker.ErrLocked as *locker.LockedError if the job is running;
// locker.ErrInvalid for a name that cannot be locked, for the name of a function of Task, and
// for a nil context; and those of Client.TryLock and Lock.Commit.
func (l *Locker) Lock(ctx context.Context, job string) (gocron.Lock, error) {
	r, err := l.lock(ctx, job)
	if err != nil {
		return nil, wrap("lock", err)
	}
	return r, nil
}

func (l *Locker) lock(ctx context.Context, job string) (*run, error) {
	tick := l.clock.Now()
	if ctx == nil {
		return nil, &locker.InvalidError{Argument: "context", Value: "nil", Problem: "gocron passes that of the job"}
	}
	if strings.Contains(job, taskFunction) {
		return nil, &locker.InvalidError{Argument: "name", Value: job, Problem: "it is the same for all jobs of Task, use gocron.WithName"}
	}
	bound, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lock, err := l.client.TryLock(bound, namePrefix+job, stamp(tick))
	if err != nil {
		return nil, err
	}
	if err := l.take(bound, lock, tick); err != nil {
		_ = lock.Unlock(bound) // goes on in the background if it is not confirmed
		return nil, err
	}
	r := &run{Lock: lock, job: ctx.Done(), owner: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.runs[r.job] = r
	return r, nil
}

// take records that the job is started for a tick, unless a record says that it was. etcd
// compares and writes in one transaction, under the lock, so a holder that has lost it takes
// nothing.
func (l *Locker) take(ctx context.Context, lock *locker.Lock, tick time.Time) error {
	key := lock.Key()
	key = recordPrefix + key[:strings.LastIndex(key, "/")]
	resp, err := lock.Commit(ctx, clientv3.OpTxn(
		[]clientv3.Cmp{
			clientv3.Compare(clientv3.Value(key), ">", stamp(tick.Add(-l.splay))),
			clientv3.Compare(clientv3.Value(key), "<", stamp(tick.Add(l.splay+lead))),
		},
		[]clientv3.Op{clientv3.OpGet(key)},
		[]clientv3.Op{clientv3.OpPut(key, stamp(tick))},
	))
	if err != nil {
		return err
	}
	if found := resp.Responses[0].GetResponseTxn(); found.Succeeded {
		return fmt.Errorf("%w, at %s", ErrAlreadyRun, found.Responses[0].GetResponseRange().Kvs[0].Value)
	}
	return nil
}

// stamp returns a time as etcd compares it: as text of a fixed width.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000Z") }

// Unlock is called by gocron when the job has returned. It is Lock.Unlock.
func (r *run) Unlock(ctx context.Context) error {
	r.owner.mu.Lock()
	if r.owner.runs[r.job] == r {
		delete(r.owner.runs, r.job)
	}
	r.owner.mu.Unlock()
	return r.Lock.Unlock(ctx)
}

// taskFunction is in the name that gocron gives to a job of Task by default, after that of the
// package or, if the compiler has inlined Task, of the caller.
const taskFunction = ".(*Locker).Task.func"

// Task returns a function for gocron.NewTask, without parameters, that calls fn under the lock
// that the Locker has taken for the run. The context of fn is that which gocron passes to a
// job, but ends with the lock as well, with its *locker.LostError as the cause; fn should
// return then. It also has the lock, for its token and for guarded writes; gocron unlocks it.
// Such a job needs a name of its own, by gocron.WithName.
//
// The function returns what fn returns, and the reason if the lock did not last until then,
// which gocron reports to the listener of gocron.AfterJobRunsWithError. Without calling fn it
// returns locker.ErrInvalid for a nil fn, and if the Locker has not taken a lock for the run,
// because the scheduler has another Locker, none, or an Elector.
func (l *Locker) Task(fn func(ctx context.Context, lock *locker.Lock) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if fn == nil {
			return wrap("task", &locker.InvalidError{Argument: "function", Value: "nil", Problem: "there is nothing to do"})
		}
		l.mu.Lock()
		r := l.runs[ctx.Done()]
		delete(l.runs, ctx.Done()) // a lock is for one run
		l.mu.Unlock()
		if r == nil {
			return wrap("task", &locker.InvalidError{Argument: "context", Value: "without a lock", Problem: "the job is not run under this Locker"})
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(r.Context(), func() { cancel(context.Cause(r.Context())) })()
		if err := r.Err(); err != nil {
			return wrap("task", err)
		}
		return join(fn(ctx, r.Lock), r.Err())
	}
}

// join joins the error of a job with that of its lock, unless the job has returned that one
// itself.
func join(result, lost error) error {
	if lost == nil || errors.Is(result, errors.Unwrap(lost)) {
		return result
	}
	return errors.Join(result, wrap("task", lost))
}
