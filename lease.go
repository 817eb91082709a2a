package locker

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/line"
	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
)

// Lock is one hold of a name: a key in the queue of the name, attached to the
// lease of a session. It ends by Unlock or by a loss and is never acquired again.
// All methods are safe for concurrent use; those without a context do not block.
type Lock struct {
	client  *Client
	session *Session
	name    string
	key     string
	token   atomic.Int64    // create revision of the entry; 0 until etcd has told it
	ctx     context.Context // ends with the hold, or with the place in the queue before it
	cancel  context.CancelCauseFunc
	turns   int // of goroutines in a row that share the entry, this one included

	waiter
	callback

	mu       sync.Mutex // guards what follows, and what of waiter and callback says so; no request is made under it
	phase    phase
	value    string
	modified int64 // mod revision at which the entry had value
	revalued bool  // by SetValue, or perhaps
}

// waiter is what a Lock needs before it is held.
type waiter struct {
	wants  *Session      // of WithSession; nil for a shared one
	place  line.Place    // in the client's line
	puts   inFlight      // of the entry, that may take effect yet
	since  int64         // a revision of etcd before any put of the entry; 0 if none is known
	placed bool          // it is known what was ahead of the entry when it was put; guarded by mu
	ahead  []predecessor // of it then, the nearest first; more than lookahead mean at least that many; guarded by mu
}

// callback is what is known of the function that Do calls, and of those around it.
type callback struct {
	outer    *Lock           // that the context it was locked with comes from; nil if there is none
	returned <-chan struct{} // closed when the function has returned; nil if there is none; guarded by mu
	caller   context.Context // that Do was called with; nil if it was not; guarded by mu
}

// phase is where in its life a Lock is. Whoever ends it finds out what it was: the
// end of a hold has to be followed by a clean-up, that of a queued lock is seen
// by the goroutine that waits for it.
type phase int

const (
	queued phase = iota
	held
	over
)

// Name returns the name that is locked.
func (l *Lock) Name() string {
	if l == nil {
		return ""
	}
	return l.name
}

// Value returns the value that the name was locked with, or the last one that
// SetValue is known to have set.
func (l *Lock) Value() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.value
}

// Key returns the key in etcd that stands for the hold.
func (l *Lock) Key() string { return l.key }

// Token returns the fencing token, the revision of etcd at which the lock was
// queued: it is strictly larger for each later hold of the name. A resource that
// refuses a smaller token after a larger one cannot be harmed by a holder that
// does not know yet that it is none (M. Kleppmann, "How to do distributed
// locking", 2016).
func (l *Lock) Token() int64 { return l.token.Load() }

// Context ends when the hold ends. context.Cause tells why: a *LostError,
// ErrReleased or ErrClosed. It has the values of the context that Lock was called
// with and nothing of its end.
func (l *Lock) Context() context.Context {
	if err := l.usable(); err != nil {
		return endedContext(err)
	}
	return l.ctx
}

// Deadline returns the time until which the hold is certain without another
// renewal. It moves while the session is renewed, and means nothing once the hold
// has ended.
func (l *Lock) Deadline() time.Time {
	if l.usable() != nil {
		return time.Time{}
	}
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	return l.session.deadline
}

// Err returns nil while the lock is held. It compares the deadline with the clock
// now, so that a process that was stopped, or whose machine slept, learns here
// that it has lost the lock. It does not block.
//
// Errors: ErrLost as *LostError, ErrReleased, ErrClosed.
func (l *Lock) Err() error {
	if err := l.usable(); err != nil {
		return wrap("hold", "", err)
	}
	if l.session.check() != nil {
		<-l.ctx.Done() // the session ends its locks
	}
	if l.ctx.Err() == nil {
		return nil
	}
	return wrap("hold", l.name, context.Cause(l.ctx))
}

// Guard returns the compares that hold in etcd exactly as long as the lock does,
// for transactions of the caller's own. Those of the zero Lock etcd refuses.
func (l *Lock) Guard() []clientv3.Cmp {
	return []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(l.key), "=", l.token.Load())}
}

// standing is Guard in etcd's own message.
func (l *Lock) standing() *pb.Compare { return txn.CmpCreate(l.key, l.token.Load()) }

// Commit applies all ops in one transaction, or none of them if the lock is no
// longer held: etcd itself decides, so not even a holder that was stopped for an
// hour can write with it. It blocks until etcd has answered; ctx bounds that, and
// the life of the lease.
//
// Errors: ErrInvalid for an op that would write the lock's own entry or the record of
// its session; ErrLost as *LostError, ErrReleased, and etcd's refusal: none of the ops
// was applied. ErrInDoubt, with the cause of ctx, ErrClosed if the Client was closed
// meanwhile, or what else kept etcd's answer away: they may have been applied, now or
// later. That goes for rpctypes.ErrNoSpace too: etcd applies what fills its space, and
// answers with that. And ErrInDoubt alone: they may have been applied twice, because
// etcd's client has repeated the transaction by itself; it does so if the answer was
// that it was canceled, which proxies between it and etcd may say.
func (l *Lock) Commit(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	const op = "commit under"
	if err := l.allows(ops); err != nil {
		return nil, wrap(op, l.Name(), err)
	}
	ctx, end, err := l.begin(ctx)
	if err != nil {
		return nil, wrap(op, l.name, err)
	}
	defer end()
	repeats := &txn.Repeats{Context: ctx}
	kv := clientv3.NewKVFromKVClient(repeats.KV(l.client.store.KV), l.client.etcd)
	// The read keeps etcd from deciding a transaction without writes by what the member
	// asked happens to know.
	check := clientv3.OpGet(l.key, clientv3.WithCountOnly())
	resp, err := kv.Txn(repeats).If(l.Guard()...).Then(ops...).Else(check).Commit()
	doubtful := writesAnything(ops) && (repeats.Any() || err != nil && txn.Unsure(err))
	switch {
	case err != nil && l.client.etcdIsClosed():
		err = ErrEtcdClosed
	case err != nil && ctx.Err() != nil:
		err = txn.Ended(ctx, err)
	case err == nil && doubtful:
		err = errRepeated
	case err == nil && !resp.Succeeded:
		err = l.entryDeleted(ctx)
	case err == nil:
		return resp, nil
	}
	if doubtful {
		err = inDoubt(err)
	}
	return nil, wrap(op, l.name, err)
}

// allows refuses what Commit cannot do: an operation that is none, and one that writes
// what the hold itself consists of. A put would detach the entry, or the record of its
// session, from the lease, so that it outlives both; a delete is for Unlock.
func (l *Lock) allows(ops []clientv3.Op) error {
	if err := l.usable(); err != nil {
		return err
	}
	for _, op := range ops {
		switch {
		case op.IsTxn():
			_, success, failure := op.Txn()
			for _, nested := range [][]clientv3.Op{success, failure} {
				if err := l.allows(nested); err != nil {
					return err
				}
			}
		case op.IsGet():
		case !op.IsPut() && !op.IsDelete():
			return &InvalidError{"operation", "{}", "it is the zero value, use clientv3.OpPut or another"}
		case writes(op, l.key):
			return &InvalidError{"operation", quote(string(op.KeyBytes())), "it would write the entry of the lock; there are SetValue and Unlock"}
		case writes(op, l.session.record()):
			return &InvalidError{"operation", quote(string(op.KeyBytes())), "it would write the record of the lock's session"}
		}
	}
	return nil
}

// writesAnything reports whether an operation is not a mere read.
func writesAnything(ops []clientv3.Op) bool {
	return slices.ContainsFunc(ops, func(op clientv3.Op) bool {
		if op.IsTxn() {
			_, success, failure := op.Txn()
			return writesAnything(success) || writesAnything(failure)
		}
		return !op.IsGet()
	})
}

// writes reports whether a put or a delete is of key. A range without an end is one key,
// and one with the end "\x00" has all keys from its beginning.
func writes(op clientv3.Op, key string) bool {
	from, end, k := op.KeyBytes(), op.RangeBytes(), []byte(key)
	switch {
	case op.IsPut() || len(end) == 0:
		return bytes.Equal(from, k)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(from, k) <= 0
	}
	return bytes.Compare(from, k) <= 0 && bytes.Compare(k, end) < 0
}

// SetValue changes the value of the lock if it is still held. It blocks until etcd
// has confirmed that; ctx bounds it, and the life of the lease. Of concurrent
// calls, the one that etcd commits last prevails.
//
// Errors: as Commit. With ErrInDoubt the value may have been set, or be set later,
// unless another is set before.
func (l *Lock) SetValue(ctx context.Context, value string) error {
	const op = "set value of"
	ctx, end, err := l.begin(ctx)
	if err != nil {
		return wrap(op, l.Name(), err)
	}
	defer end()
	for {
		l.mu.Lock()
		revision := l.modified
		l.revalued = true
		l.mu.Unlock()
		// The mod revision orders the writes: one that comes late is refused.
		resp, only, err := l.client.store.Commit(ctx, txn.Txn{
			Name:      l.name,
			When:      []*pb.Compare{l.standing(), txn.CmpMod(l.key, revision)},
			Then:      []*pb.RequestOp{txn.OpPut(l.key, value, l.session.lease)},
			Otherwise: []*pb.RequestOp{txn.OpRange(txn.Get(l.key))},
		})
		if errors.Is(err, errDrained) {
			return wrap(op, l.name, context.Cause(l.ctx)) // the value went with the lease
		}
		if err != nil {
			if err = l.session.diagnose(err); txn.Unsure(err) || ctx.Err() != nil {
				err = inDoubt(err)
			}
			return wrap(op, l.name, err)
		}
		if resp.Succeeded {
			l.learn(value, resp.Header.Revision)
			return nil
		}
		kvs := txn.Found(resp, 0)
		if len(kvs) == 0 || kvs[0].CreateRevision != l.token.Load() {
			return wrap(op, l.name, l.entryDeleted(ctx))
		}
		l.learn(string(kvs[0].Value), kvs[0].ModRevision)
		if !only && string(kvs[0].Value) == value {
			return nil // by an attempt whose answer was lost
		}
	}
}

// learn keeps the newest value seen of the entry.
func (l *Lock) learn(value string, modified int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if modified > l.modified {
		l.value, l.modified = value, modified
	}
}

// Unlock gives the lock up. The hold ends at once, whatever follows: its context
// ends with ErrReleased, and the entry is removed from the queue even if it takes
// a while or ctx has already ended. ctx bounds only the wait for etcd to confirm
// that; if it ends first, the error has its cause, and the removal goes on in the
// background. It is bounded by the TTL: what cannot be confirmed by then costs the
// session its lease, and an Unlock that still waits returns why.
//
// If ctx has ended before Unlock is called, Unlock does not wait. If ctx ends with the
// hold (it is its Context, or that of a function of Do, or derived from one), that is by
// Unlock itself and does not count, but the deadline of ctx does, and so does the end of
// the context that Do was called with.
//
// Errors: ErrInvalid for a nil context, which leaves the hold as it is; ErrLost as
// *LostError if the lock was lost before, also if only etcd knew that its entry had been
// deleted; ErrReleased if it was unlocked before; ErrClosed if its Client or Session was
// closed.
func (l *Lock) Unlock(ctx context.Context) error {
	const op = "unlock"
	if err := l.usable(); err != nil {
		return wrap(op, l.Name(), err)
	}
	if err := checkContext(ctx); err != nil {
		return wrap(op, l.name, err)
	}
	c := l.client
	ctx, stop := l.outlasting(ctx)
	defer stop()
	l.session.check()
	if l.end(ErrReleased) != held {
		<-l.ctx.Done() // whoever ended it is about to say why
		return wrap(op, l.name, context.Cause(l.ctx))
	}
	if !c.tasks.Begin() {
		l.session.deleteLater(l)
		l.detach(nil)
		return wrap(op, l.name, ErrClosed)
	}
	defer c.tasks.End()
	next := c.lines.Call(l.name)
	if next != nil && l.shareHold(next) {
		return nil
	}
	done := make(chan error, 1)
	c.tasks.Run(func() { done <- l.cleanUp(next) })
	select {
	case err := <-done:
		return wrap(op, l.name, err)
	case <-ctx.Done(): // it goes on
		return wrap(op, l.name, txn.Ended(ctx, c.explain(ctx.Err())))
	}
}

// usable returns an error for what no Client has made.
func (l *Lock) usable() error {
	if l == nil || l.client == nil {
		return errZeroLock
	}
	return nil
}

// begin starts a call that needs the hold. If the hold ends during the call, etcd
// decides what becomes of it: the context of the call ends with ctx, with the
// client, or when nothing is left of the session, not with the hold.
func (l *Lock) begin(ctx context.Context) (context.Context, func(), error) {
	if err := l.usable(); err != nil {
		return nil, nil, err
	}
	if err := checkContext(ctx); err != nil {
		return nil, nil, err
	}
	if err := l.session.check(); err != nil {
		<-l.ctx.Done()
	}
	if l.ctx.Err() != nil {
		return nil, nil, context.Cause(l.ctx)
	}
	ctx, end, err := l.client.begin(ctx)
	if err != nil {
		return nil, nil, err
	}
	ctx, stop := tasks.Either(ctx, l.session.cleanUpCtx)
	return ctx, func() { stop(); end() }, nil
}

// end ends the lock, unless it has ended before, and returns what it was until now.
func (l *Lock) end(cause error) phase {
	l.mu.Lock()
	was := l.phase
	l.phase = over
	l.mu.Unlock()
	if was != over {
		l.cancel(cause)
	}
	return was
}

// entryDeleted ends the lock because its entry is not in the queue any more, and returns
// why the lock ended. It asks whether the lease is gone as well: then so are all
// other locks of the session.
func (l *Lock) entryDeleted(ctx context.Context) error {
	s := l.session
	ctx, cancel := context.WithTimeout(ctx, l.client.store.LateAnswerWait())
	defer cancel()
	if resp, err := l.client.etcd.TimeToLive(ctx, s.lease); err == nil && resp.GrantedTTL == 0 {
		s.end(&LostError{Reason: Revoked, Cause: rpctypes.ErrLeaseNotFound})
	} else {
		lost := &LostError{Name: l.name, Token: l.token.Load(), Reason: Deleted}
		if l.end(lost) == held {
			l.client.log.Warn("lock deleted by somebody else", "name", l.name, "token", lost.Token)
			l.startCleanUp()
		}
	}
	<-l.ctx.Done()
	return context.Cause(l.ctx)
}

// holdKey is the key of the *Lock with whose hold a context ends: that of the hold
// itself, or that of a function that Do or Campaign calls under it.
type holdKey struct{}

// holdOf returns the innermost such lock, nil if there is none.
func holdOf(ctx context.Context) *Lock {
	l, _ := ctx.Value(holdKey{}).(*Lock)
	return l
}

// do calls fn under the lock and releases it; it returns the errors of both.
func (l *Lock) do(ctx context.Context, fn func(context.Context, *Lock) error) (result, released error) {
	fctx, stop := tasks.Either(ctx, l.ctx)
	defer stop()
	defer func() { // also when fn panics
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(l.session.ttl, cleanupWait))
		defer cancel()
		released = l.Unlock(ctx)
		if errors.Is(released, ErrReleased) {
			released = nil // by fn
		}
	}()
	returned := make(chan struct{})
	defer close(returned)
	if !l.run(ctx, returned) {
		return nil, nil // it is over already; Unlock says why
	}
	return fn(context.WithValue(fctx, holdKey{}, l), l), nil
}

// run notes that a callback begins, which will close returned, if the lock is held; ctx
// is that of Do.
func (l *Lock) run(ctx context.Context, returned chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == held {
		l.returned, l.caller = returned, ctx
	}
	return l.phase == held
}

// running returns what the callback will close, nil if there is none.
func (l *Lock) running() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.returned
}

// isHeld reports whether the lock has not ended. Unlike Err, it does not ask the clock.
func (l *Lock) isHeld() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase == held
}

// outlasting returns the context that bounds Unlock: if ctx ends with the hold, and so by
// Unlock itself, its deadline counts, and the context that Do was called with, unless it
// has ended before.
func (l *Lock) outlasting(ctx context.Context) (context.Context, context.CancelFunc) {
	if ctx.Err() != nil || !l.endsWith(ctx) {
		return ctx, func() {}
	}
	deadline, bounded := ctx.Deadline()
	ctx, stop := tasks.Either(context.WithoutCancel(ctx), l.callerOfDo())
	if !bounded {
		return ctx, stop
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	return ctx, func() { cancel(); stop() }
}

// callerOfDo returns the context that Do was called with, or one without an end.
func (l *Lock) callerOfDo() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.caller == nil {
		return context.Background()
	}
	return l.caller
}

// endsWith reports whether ctx ends with the hold of l, as far as its values tell.
func (l *Lock) endsWith(ctx context.Context) bool {
	outer := holdOf(ctx)
	for outer != nil && outer != l && outer.running() != nil { // the context of a callback within
		outer = outer.outer
	}
	return outer == l
}
