package locker

import (
	"context"
	"errors"
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

// Lock is one hold of a Name: a key in the queue of the name, attached to the
// lease of a session. It ends by Unlock or by a loss and is never acquired again.
// All methods are safe for concurrent use; those without a context do not block.
type Lock struct {
	client  *Client
	wants   *Session // of WithSession; nil for a shared one
	session *Session
	name    string
	key     string
	since   int64           // a revision of etcd before any put of the entry; 0 if none is known
	ctx     context.Context // ends with the hold, or with the place in the queue before it
	cancel  context.CancelCauseFunc
	token   atomic.Int64 // create revision of the entry; 0 until etcd has told it

	outer *Lock      // that the context it was locked with comes from; nil if there is none
	place line.Place // in the client's line
	turns int        // of goroutines in a row that share the entry, this one included
	puts  puts       // of the entry, that may take effect yet

	mu       sync.Mutex // guards what follows; no request is made under it
	phase    phase
	callback <-chan struct{} // closed when the function of Do has returned; nil if there is none
	caller   context.Context // that Do was called with; nil if it was not
	value    string
	modified int64         // mod revision at which the entry had value
	revalued bool          // by SetValue, or perhaps
	placed   bool          // it is known what was ahead of the entry when it was put
	ahead    []predecessor // of it then, the nearest first; more than lookahead mean at least that many
}

// phase is where in its life a Lock is. Whoever ends it finds out what it was: the
// end of a hold has to be followed by a departure, that of a queued lock is seen
// by the goroutine that waits for it.
type phase int

const (
	queued phase = iota
	held
	over
)

// newLock returns a lock that is yet to be attached to a session. Its context keeps
// the values of ctx, but nothing of its end.
func (c *Client) newLock(ctx context.Context, name, value string, wants *Session) *Lock {
	l := &Lock{client: c, wants: wants, outer: holdOf(ctx), name: name, value: value, turns: 1}
	ctx, l.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	l.ctx = context.WithValue(ctx, holdKey{}, l)
	return l
}

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
	if next != nil && l.share(next) {
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
// client, or when the session is buried, not with the hold.
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

// endWait ends the lock if it is still queued.
func (l *Lock) endWait(cause error) {
	l.mu.Lock()
	was := l.phase
	if was == queued {
		l.phase = over
	}
	l.mu.Unlock()
	if was == queued {
		l.cancel(cause)
	}
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

// hold turns a queued lock that has come to the front into a held one, if nothing
// has happened to it.
func (l *Lock) hold() error {
	alive := l.session.check() == nil
	l.mu.Lock()
	ok := alive && l.phase == queued
	if ok {
		l.phase = held
	}
	l.mu.Unlock()
	if ok {
		return nil
	}
	<-l.ctx.Done()
	return context.Cause(l.ctx)
}
