package locker

import (
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

// A Lock is the handle of one hold of a name, or of several names: an entry in the queue of
// each, attached to the lease of a session. The hold ends by Unlock, by a loss, or with its
// Client or Session; the same Lock never holds again. All methods are safe for concurrent
// use. Those without a context do not block.
type Lock struct {
	client  *Client
	session *Session
	entries []entry         // one for each name, put and deleted in one transaction
	token   atomic.Int64    // create revision of the entries; 0 until it is known
	ctx     context.Context // ends with the hold, or before it with the wait in the queue; see holdContext
	cancel  context.CancelCauseFunc
	outer   *Lock  // the hold that the context it was locked with comes from; nil if there is none
	trace   *trace // nil if there are no hooks
	waiter

	mu       sync.Mutex // guards what follows; no request is made under it
	phase    phase
	stage    stage
	revalued bool      // SetValue was called, so the entry may have another value
	shares   int32     // how many goroutines in a row have shared the entry, this one included
	callback *callback // nil if there is none
}

// waiter is what a Lock needs until it is held.
type waiter struct {
	wants *Session  // of WithSession; nil for a shared one
	wait  line.Wait // in the client's lines
	puts  inFlight  // of the entries, that may yet take effect
	since int64     // a revision of etcd from before any put of the entries; 0 if none is known
}

// callback is the function that Do calls under the hold.
type callback struct {
	returned <-chan struct{} // closed when the function has returned
	caller   context.Context // the context that Do was called with
}

// phase is the state of a Lock: queued, then held, then over, or queued, then over. A
// goroutine that ends a lock is given the phase until then: the end of a hold has to be
// followed by a clean-up, that of a queued lock is noticed by the goroutine that waits for
// it.
type phase uint8

const (
	queued phase = iota
	held
	over
)

// stage is how far a lock has come on its way into the queue. The goroutine that hands the
// name over may bring it there.
type stage uint8

const (
	inLine   stage = iota // of the client's
	admitted              // to a session, which gives the entry its key
	enqueued              // the entries were put, and their token is known
)

// Name returns the name that is locked, the first one if there are several.
func (l *Lock) Name() string {
	if l.usable() != nil {
		return ""
	}
	return l.name()
}

// Names returns all names that are locked, in the order in which they were given.
func (l *Lock) Names() (names []string) {
	if l.usable() != nil {
		return nil
	}
	for i := range l.entries {
		names = append(names, l.entries[i].place.Name)
	}
	return names
}

// Value returns the value that the name was locked with, or the last value that SetValue is
// known to have set; if there are several names, that of the first.
func (l *Lock) Value() string {
	if l.usable() != nil {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[0].value
}

// Key returns the key of the hold's entry in etcd; if there are several names, that of the
// first.
func (l *Lock) Key() string {
	if l.usable() != nil {
		return ""
	}
	return l.key(&l.entries[0])
}

// Token returns the fencing token, which is the create revision of the entries. It is
// strictly larger for each later hold of the name. A resource that refuses a token smaller
// than the largest it has seen cannot be harmed by a holder that does not know yet that it
// has lost the lock (M. Kleppmann, "How to do distributed locking", 2016).
//
// Where several may hold at one time, their tokens do not exclude each other. Shared holders
// may even have the same one. A resource that tells readers from writers keeps the largest
// token of each, and accepts a write whose token is at least as large as both, and a read
// whose token is larger than that of every write. Among the holders of WithLimit a smaller
// token may be that of a good hold: use Commit or Guard.
func (l *Lock) Token() int64 {
	if l == nil {
		return 0
	}
	return l.token.Load()
}

// Context returns a context that ends when the hold ends. Its cause, see context.Cause, is
// then a *LostError, ErrReleased or ErrClosed. It has the values of the context that Lock
// was called with, but does not end with it.
func (l *Lock) Context() context.Context {
	if err := l.usable(); err != nil {
		return endedContext(err)
	}
	return (*holdContext)(l)
}

// Deadline returns the time until which the hold is certain without another renewal. It
// moves on while the session is renewed, and has no meaning once the hold has ended.
func (l *Lock) Deadline() time.Time {
	if l.usable() != nil {
		return time.Time{}
	}
	l.session.mu.Lock()
	defer l.session.mu.Unlock()
	return l.session.deadline
}

// Err returns nil while the lock is held. It compares the deadline with the clock, so a
// process that was stopped, or whose machine slept, learns here that it has lost the lock.
// It does not block.
//
// Errors: ErrLost as *LostError; ErrReleased; ErrClosed.
func (l *Lock) Err() error {
	if err := l.usable(); err != nil {
		return wrap("hold", "", err)
	}
	if l.session.check() != nil {
		<-l.ctx.Done() // the session is about to end its locks
	}
	if l.ctx.Err() == nil {
		return nil
	}
	return wrap("hold", l.name(), context.Cause(l.ctx))
}

// Guard returns compares that are true in etcd exactly as long as the lock is held, for
// transactions of the caller's own: one for each name. etcd refuses those of the zero Lock.
func (l *Lock) Guard() (guard []clientv3.Cmp) {
	if l.usable() != nil {
		return []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(""), "=", 0)}
	}
	for _, k := range l.keys() {
		guard = append(guard, clientv3.Compare(clientv3.CreateRevision(k), "=", l.token.Load()))
	}
	return guard
}

// name returns the first name.
func (l *Lock) name() string { return l.entries[0].place.Name }

// has reports whether the lock is of the name.
func (l *Lock) has(name string) bool { return slices.Contains(l.Names(), name) }

// Commit applies all ops in one transaction, or none of them if the lock is not held any
// more. etcd itself decides, so even a holder that was stopped for an hour cannot write
// with it. Commit blocks until etcd has answered; it is bounded by ctx and by the life of
// the lease.
//
// Errors after which none of the ops was applied: ErrInvalid for an op that would write the
// lock's own entry or the record of its session; ErrLost as *LostError; ErrReleased;
// ErrClosed if the Client or the Session was closed before the call; and etcd's refusal.
//
// Errors after which they may have been applied, now or later: ErrInDoubt together with the
// cause of ctx, with ErrClosed if the Client was closed meanwhile, or with whatever else
// kept etcd's answer away. This includes rpctypes.ErrNoSpace, because etcd applies what
// fills its space, and answers with that error.
//
// ErrInDoubt alone means that they may have been applied twice: etcd's client has repeated
// the transaction by itself. It does so if the answer was that the transaction was
// canceled, which proxies between it and etcd may send.
func (l *Lock) Commit(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	const op = "commit under"
	if err := l.allows(ops); err != nil {
		return nil, wrap(op, l.Name(), err)
	}
	ctx, end, err := l.begin(ctx)
	if err != nil {
		return nil, wrap(op, l.name(), err)
	}
	defer end()
	repeats := &txn.Repeats{Context: ctx}
	kv := clientv3.NewKVFromKVClient(repeats.KV(l.client.store.KV), l.client.etcd)
	// The read keeps etcd from deciding a transaction without writes by what the member
	// that was asked happens to know.
	check := clientv3.OpGet(l.Key(), clientv3.WithCountOnly())
	resp, err := kv.Txn(repeats).If(l.Guard()...).Then(ops...).Else(check).Commit()
	doubtful := txn.WritesAny(ops) && (repeats.Any() || err != nil && txn.Unsure(err))
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
		l.session.timeline.saw(resp.Header)
		return resp, nil
	}
	if doubtful {
		err = inDoubt(err)
	}
	return nil, wrap(op, l.name(), err)
}

// allows returns an error for what Commit must not do: an operation that is none, and one
// that writes what the hold itself consists of. A put would detach the entry, or the record
// of its session, from the lease, so that it outlived both; to delete the entry there is
// Unlock.
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
		case slices.ContainsFunc(l.keys(), func(k string) bool { return txn.Writes(op, k) }):
			return &InvalidError{"operation", quote(string(op.KeyBytes())), "it would write the entry of the lock; there are SetValue and Unlock"}
		case txn.Writes(op, l.session.record()):
			return &InvalidError{"operation", quote(string(op.KeyBytes())), "it would write the record of the lock's session"}
		}
	}
	return nil
}

// SetValue changes the value of the lock, if it is still held. It blocks until etcd has
// confirmed that; it is bounded by ctx and by the life of the lease. Of concurrent calls,
// the one that etcd commits last prevails.
//
// Errors: as for Commit. After ErrInDoubt the value may have been set, or may be set later,
// unless another is set before.
func (l *Lock) SetValue(ctx context.Context, value string) error {
	const op = "set value of"
	ctx, end, err := l.begin(ctx)
	if err != nil {
		return wrap(op, l.Name(), err)
	}
	defer end()
	for entry := l.Key(); ; {
		l.mu.Lock()
		revision := l.entries[0].modified
		l.revalued = true
		l.mu.Unlock()
		name, _ := l.group()
		// The mod revision orders the writes: one that arrives late is refused.
		resp, only, err := l.client.store.Commit(ctx, txn.Txn{
			Name:      name,
			When:      append(l.standing(l.keys()), txn.CmpMod(entry, revision)),
			Then:      []*pb.RequestOp{txn.OpPut(entry, value, l.session.lease)},
			Otherwise: []*pb.RequestOp{txn.OpRange(txn.Get(entry))},
		})
		if errors.Is(err, errDrained) {
			return wrap(op, l.name(), context.Cause(l.ctx)) // the value has gone with the lease
		}
		if err != nil {
			if err = l.session.diagnose(err); txn.Unsure(err) || ctx.Err() != nil {
				err = inDoubt(err)
			}
			return wrap(op, l.name(), err)
		}
		l.session.timeline.saw(resp.Header)
		if resp.Succeeded {
			l.learn(value, resp.Header.Revision)
			return nil
		}
		kvs := txn.Found(resp, 0)
		if len(kvs) == 0 || kvs[0].CreateRevision != l.token.Load() || kvs[0].ModRevision == revision { // or that of another name is gone
			return wrap(op, l.name(), l.entryDeleted(ctx))
		}
		l.learn(string(kvs[0].Value), kvs[0].ModRevision)
		if !only && string(kvs[0].Value) == value {
			return nil // by an attempt whose answer was lost
		}
	}
}

// learn keeps the newest value of the entry that was seen.
func (l *Lock) learn(value string, modified int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := &l.entries[0]; modified > e.modified {
		e.value, e.modified = value, modified
	}
}

// Unlock gives the lock up. The hold ends at once, whatever follows: its context ends with
// ErrReleased, and the entry is removed from the queue even if that takes a while or ctx
// has already ended. Unlock blocks until etcd has confirmed the removal. ctx bounds that
// wait only: if it ends first, Unlock returns its cause, and the removal goes on in the
// background. The removal is bounded by the TTL: what cannot be confirmed by then costs the
// session its lease, and an Unlock that still waits returns the reason.
//
// If ctx has ended before the call, Unlock does not wait. If ctx ends with the hold (it is
// the hold's Context, or the context of a function of Do, or derived from one of these),
// that end is caused by Unlock itself and does not count; but its deadline does, and so
// does the end of the context that Do was called with.
//
// Errors: ErrInvalid for a nil context, after which the hold is as before; ErrLost as
// *LostError if the lock was lost before, even if only etcd knew that its entry had been
// deleted; ErrReleased if it was unlocked before; ErrClosed if its Client or Session was
// closed; the cause of ctx; and what kept the removal from being confirmed.
func (l *Lock) Unlock(ctx context.Context) error {
	const op = "unlock"
	if err := l.usable(); err != nil {
		return wrap(op, l.Name(), err)
	}
	if err := checkContext(ctx); err != nil {
		return wrap(op, l.name(), err)
	}
	c := l.client
	ctx, stop := l.outlasting(ctx)
	defer stop()
	l.session.check()
	if l.end(ErrReleased) != held {
		<-l.ctx.Done() // the goroutine that ended it is about to set the cause
		return wrap(op, l.name(), context.Cause(l.ctx))
	}
	defer l.reportEnd()
	if !c.tasks.Begin() {
		l.session.deleteLater(l)
		l.detach()
		return wrap(op, l.name(), ErrClosed)
	}
	defer c.tasks.End()
	next := c.lines.Call(l)
	if next != nil && l.shareHold(next) {
		return nil
	}
	w := l.startRemoval(ctx, next)
	if l.removed(ctx, w) {
		l.detach()
		return nil
	}
	done := make(chan error, 1)
	c.tasks.Run(func() { done <- l.cleanUp(next, w) })
	select {
	case err := <-done:
		return wrap(op, l.name(), err)
	case <-ctx.Done(): // the removal goes on
		return wrap(op, l.name(), txn.Ended(ctx, c.explain(ctx.Err())))
	}
}

// usable returns an error for a Lock that no Client has made.
func (l *Lock) usable() error {
	if l == nil || l.client == nil {
		return errZeroLock
	}
	return nil
}

// begin begins a call that needs the hold. If the hold ends during the call, etcd decides
// what becomes of the call: its context ends with ctx, with the client, or when nothing is
// left of the session, but not with the hold.
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

// end ends the lock, unless it has ended before, and returns its phase until now. The end of a
// hold is reported by the caller.
func (l *Lock) end(cause error) phase {
	l.mu.Lock()
	was := l.phase
	l.phase = over
	l.mu.Unlock()
	if was == held {
		l.traceEnd(cause)
	}
	if was != over {
		l.cancel(cause)
	}
	return was
}

// reach notes that the lock has come to a stage.
func (l *Lock) reach(s stage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stage = s
}

// reached reports whether the lock has come as far as a stage.
func (l *Lock) reached(s stage) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stage >= s
}

// entryDeleted ends the lock because its entry is not in the queue any more, and returns
// why the lock ended. It asks etcd whether the lease is gone as well: then all other locks
// of the session are lost too.
func (l *Lock) entryDeleted(ctx context.Context) error {
	s := l.session
	ctx, cancel := context.WithTimeout(ctx, l.client.store.LateAnswerWait())
	defer cancel()
	if resp, err := l.client.etcd.TimeToLive(ctx, s.lease); err == nil && resp.GrantedTTL == 0 {
		s.end(&LostError{Reason: Revoked, Cause: rpctypes.ErrLeaseNotFound})
	} else {
		lost := &LostError{Name: l.name(), Token: l.token.Load(), Reason: Deleted}
		if l.end(lost) == held {
			l.client.log.Warn("lock deleted by somebody else", "name", l.name(), "token", lost.Token)
			l.reportEndLater()
			l.startCleanUp()
		}
	}
	<-l.ctx.Done()
	return context.Cause(l.ctx)
}

// holdKey is the context key of the *Lock with whose hold a context ends: the context of
// the hold itself, or that of a function that Do or Campaign calls under it.
type holdKey struct{}

// holdContext is the context of a Lock for others: its own, with the Lock as a value. It is
// the Lock itself, because a program may hold very many.
type holdContext Lock

func (h *holdContext) Deadline() (time.Time, bool) { return h.ctx.Deadline() }
func (h *holdContext) Done() <-chan struct{}       { return h.ctx.Done() }
func (h *holdContext) Err() error                  { return h.ctx.Err() }
func (h *holdContext) Value(key any) any {
	if key == (holdKey{}) {
		return (*Lock)(h)
	}
	return h.ctx.Value(key)
}

// holdOf returns the innermost lock with whose hold ctx ends, nil if there is none.
func holdOf(ctx context.Context) *Lock {
	l, _ := ctx.Value(holdKey{}).(*Lock)
	return l
}

// do calls fn under the lock and then releases it; it returns the errors of both.
func (l *Lock) do(ctx context.Context, fn func(context.Context, *Lock) error) (result, released error) {
	fctx, stop := tasks.Either(ctx, l.ctx)
	defer stop()
	defer func() { // also when fn panics
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), min(l.session.ttl, cleanupWait), errReleaseLate)
		defer cancel()
		released = l.Unlock(ctx)
		if errors.Is(released, ErrReleased) {
			released = nil // fn has unlocked it
		}
	}()
	returned := make(chan struct{})
	defer close(returned)
	if !l.run(ctx, returned) {
		return nil, nil // it is over already; Unlock says why
	}
	return fn(context.WithValue(fctx, holdKey{}, l), l), nil
}

// run notes that a function of Do begins, if the lock is held. The function will close
// returned; ctx is the context that Do was called with.
func (l *Lock) run(ctx context.Context, returned chan struct{}) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.phase == held {
		l.callback = &callback{returned, ctx}
	}
	return l.phase == held
}

// running returns the channel that is closed when the function of Do has returned, nil if
// there is no function.
func (l *Lock) running() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.callback == nil {
		return nil
	}
	return l.callback.returned
}

// isHeld reports whether the lock is held. Unlike Err, it does not look at the clock.
func (l *Lock) isHeld() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phase == held
}

// outlasting returns the context that bounds Unlock. If ctx ends with the hold, and so by
// Unlock itself, what counts is its deadline and the context that Do was called with;
// unless ctx has ended before.
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

// callerOfDo returns the context that Do was called with, or one that never ends.
func (l *Lock) callerOfDo() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.callback == nil {
		return context.Background()
	}
	return l.callback.caller
}

// endsWith reports whether ctx ends with the hold of l, as far as its values show.
func (l *Lock) endsWith(ctx context.Context) bool {
	outer := holdOf(ctx)
	for outer != nil && outer != l && outer.running() != nil { // the context of a function within
		outer = outer.outer
	}
	return outer == l
}
