package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/rpc"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// worker is a goroutine of a client process that locks, uses and releases names in a loop.
type worker struct {
	target
	*recorder
	locks  locks
	etcd   *clientv3.Client
	fence  *rpc.Client
	rnd    *rand.Rand
	number int

	over    []heldLock // holds that have ended, to be used again
	endings sync.WaitGroup
}

// heldLock is a hold and the call that began it.
type heldLock struct {
	hold
	began call
}

// run locks names until ctx ends.
func (w *worker) run(ctx context.Context) {
	if w.Load == loadCrowd {
		_ = pause(ctx, time.Duration(w.rnd.Int64N(int64(arrival))))
	}
	for ctx.Err() == nil {
		w.lockOnce(ctx)
	}
	w.endings.Wait()
}

// value is the value with which a call locks. Only holds with the same value are passed on.
func (w *worker) value(c call) string {
	if w.shares() && c.Mode == exclusive && len(c.And) == 0 {
		return c.Process
	}
	return c.ref()
}

// mixes reports whether the worker is one of those that lock names in all modes.
func (w *worker) mixes() bool { return w.number > w.Workers }

// holdsLong reports whether the worker is one of the two that hold posts for a long time.
func (w *worker) holdsLong() bool { return w.number <= 2 && w.Load == "" }

// lockOnce makes one attempt to lock a name, and uses and releases the hold.
func (w *worker) lockOnce(ctx context.Context) {
	w.useStale(ctx)
	c := call{Op: opLock, Name: w.name(w.rnd.IntN(w.Names)), Worker: w.number}
	switch {
	case w.holdsLong():
		c.Name = w.post(w.rnd.IntN(4) / 3)
	case w.mixes():
		w.drawItems(&c)
	}
	timeout := 6 * w.TTL
	switch w.rnd.IntN(20) {
	case 0, 1:
		c.Op = opTry
	case 2, 3, 4: // ends mostly while it waits
		timeout = time.Duration(w.rnd.Int64N(int64(300 * time.Millisecond)))
	}
	c.By = now().add(timeout)
	c = w.begin(c)
	acquiring, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if w.mixes() && c.Op == opLock && w.rnd.IntN(4) == 0 {
		w.do(acquiring, c)
		return
	}
	h, err := w.locks.acquire(acquiring, c, w.value(c))
	if ctx.Err() != nil {
		c.By = min(c.By, now()) // the process was asked to stop
	}
	if err != nil {
		w.failed(ctx, c, err)
		return
	}
	c = w.acquired(c, h)
	w.hold(ctx, c, h)
	w.unlock(c, h)
}

// failed records that a call has returned no hold.
func (w *worker) failed(ctx context.Context, c call, err error) {
	c.Outcome, c.Reason = failed, errText(err)
	w.end(c)
	if !errors.Is(err, locker.ErrLocked) && !errors.Is(err, context.DeadlineExceeded) {
		_ = pause(ctx, 50*time.Millisecond) // etcd refused: do not retry at once
	}
}

// acquired records the hold that a call has begun.
func (w *worker) acquired(c call, h hold) call {
	c.Outcome, c.Token = ok, h.Token()
	c = w.end(c)
	w.endings.Go(func() { w.monitor(c, h) })
	return c
}

// do makes the call with Do, which releases the hold by itself.
func (w *worker) do(ctx context.Context, c call) {
	var unlock call
	value := w.value(c)
	err := w.locks.(lockerLocks).Do(ctx, c.Name, value, func(ctx context.Context, h *locker.Lock) error {
		c = w.acquired(c, h)
		w.hold(ctx, c, h)
		unlock = under(c, opUnlock)
		unlock.By = now().add(min(w.Lease, closeBound))
		unlock = w.begin(unlock)
		return nil
	}, options(c, value)...)
	if c.Outcome != ok {
		if ctx.Err() != nil {
			c.By = min(c.By, now())
		}
		w.failed(ctx, c, err)
		return
	}
	w.unlocked(unlock, err)
}

// drawItems draws the names of a call, and their modes.
func (w *worker) drawItems(c *call) {
	first := w.rnd.IntN(w.Mixed)
	c.Name, c.Mode = mixedName(first), w.drawMode(first)
	if w.Mixed > 1 && w.rnd.IntN(4) == 0 {
		other := (first + 1 + w.rnd.IntN(w.Mixed-1)) % w.Mixed
		c.And = []item{{mixedName(other), w.drawMode(other)}}
	}
}

// drawMode draws the mode of a name: one name is for readers and a few writers, one for
// limits that differ, one for everything, and one nearly only for readers, so that they
// rarely find a queue.
func (w *worker) drawMode(name int) mode {
	modes := [][]mode{
		{shared, shared, shared, shared, shared, exclusive},
		{2, 2, 3, 3, exclusive},
		{shared, shared, 2, 3, exclusive},
		{shared},
	}[name%4]
	if w.rnd.IntN(20) == 0 {
		return exclusive
	}
	return modes[w.rnd.IntN(len(modes))]
}

// monitor calls Err of a hold again and again, whatever its worker does, and records its
// end. Every hold ends, at the latest when the client is closed.
func (w *worker) monitor(began call, h hold) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			w.checkErr(began, h)
			continue
		case <-h.Context().Done():
		}
		if cause := context.Cause(h.Context()); !errors.Is(cause, locker.ErrReleased) {
			w.note(call{Op: opEnded, Name: began.Name, Hold: began.ID, Token: began.Token, Reason: reason(cause)})
		}
		return
	}
}

// hold does what the lock protects, for a random time.
func (w *worker) hold(ctx context.Context, began call, h hold) {
	w.checkErr(began, h)
	end := time.Now().Add(w.holdDuration())
	if w.rnd.IntN(2) == 0 {
		w.commit(ctx, began, h)
	}
	if w.rnd.IntN(10) == 0 {
		w.setValue(ctx, began, h)
	}
	// The resource knows no readers, and refuses the smaller token of two holders.
	if (w.holdsLong() || w.rnd.IntN(4) > 0) && began.Mode == exclusive {
		w.add(ctx, began, h, time.Until(end)/2)
	}
	lasting, stop := context.WithCancel(ctx)
	defer context.AfterFunc(h.Context(), stop)()
	_ = pause(lasting, time.Until(end))
	stop()
	w.checkErr(began, h)
	w.over = append(w.over, heldLock{h, began})
	if len(w.over) > 4 {
		w.over = w.over[1:]
	}
}

// holdDuration draws the duration of a hold: mostly short, sometimes longer than a TTL.
func (w *worker) holdDuration() time.Duration {
	switch n := w.rnd.IntN(100); {
	case w.Load != "":
		return 500*time.Millisecond + time.Duration(w.rnd.Int64N(int64(1500*time.Millisecond)))
	case w.holdsLong():
		return w.Hold/8 + time.Duration(w.rnd.Int64N(int64(w.Hold)))
	case n < 4:
		return w.TTL/4 + time.Duration(w.rnd.Int64N(int64(w.TTL)))
	case n < 25:
		return 50*time.Millisecond + time.Duration(w.rnd.Int64N(int64(150*time.Millisecond)))
	default:
		return time.Duration(w.rnd.Int64N(int64(15 * time.Millisecond)))
	}
}

// under returns a call that belongs to a hold.
func under(began call, o op) call {
	return call{Op: o, Name: began.Name, Hold: began.ID, Token: began.Token, Worker: began.Worker}
}

// checkErr calls Err and records the result.
func (w *worker) checkErr(began call, h hold) bool {
	c := under(began, opErr)
	c.Start = now()
	err := h.Err()
	c.End, c.Outcome = now(), ok
	if err != nil {
		c.Outcome, c.Reason = lost, reason(err)
	}
	w.note(c)
	return err == nil
}

// useStale sometimes calls Err of a hold that has ended, and tries a write guarded by it.
func (w *worker) useStale(ctx context.Context) {
	if len(w.over) == 0 || w.rnd.IntN(3) > 0 {
		return
	}
	f := w.over[w.rnd.IntN(len(w.over))]
	w.checkErr(f.began, f.hold)
	c := w.begin(under(f.began, opStale))
	wctx, cancel := context.WithTimeout(ctx, w.TTL)
	defer cancel()
	resp, err := w.etcd.Txn(wctx).If(f.Guard()...).Then(w.element(c)).Commit()
	switch {
	case err != nil:
		c.Outcome, c.Reason = unsure, errText(err)
	case resp.Succeeded:
		c.Outcome, c.Value = ok, resp.Header.Revision
	default:
		c.Outcome = failed
	}
	w.end(c)
}

// element returns the put of an element of the guarded set, whose value is the token.
func (w *worker) element(c call) clientv3.Op {
	return clientv3.OpPut(elementKey(c.Name, c.ref()), strconv.FormatInt(c.Token, 10))
}

func (w *worker) commit(ctx context.Context, began call, h hold) {
	wctx, cancel := context.WithTimeout(ctx, w.TTL)
	defer cancel()
	c := under(began, opCommit)
	c.By = now().add(w.TTL)
	c = w.begin(c)
	resp, err := h.Commit(wctx, w.element(c))
	c.Outcome, c.Reason = outcomeOf(err), errText(err)
	if err == nil {
		c.Value = resp.Header.Revision
	}
	w.end(c)
}

func (w *worker) setValue(ctx context.Context, began call, h hold) {
	wctx, cancel := context.WithTimeout(ctx, w.TTL)
	defer cancel()
	c := under(began, opValue)
	c.By = now().add(w.TTL)
	c = w.begin(c)
	err := h.SetValue(wctx, w.value(began)+"+"+strconv.FormatInt(c.ID, 10))
	c.Outcome, c.Reason = outcomeOf(err), errText(err)
	w.end(c)
}

// outcomeOf returns what an error of a guarded write means by the library's documentation.
func outcomeOf(err error) outcome {
	switch {
	case err == nil:
		return ok
	case errors.Is(err, locker.ErrLost):
		return lost
	case errors.Is(err, locker.ErrReleased):
		return failed
	}
	return unsure
}

// add reads the counter of the resource, waits, and writes it incremented, unless the hold
// is lost by then. The process may be stopped between that check and the write.
func (w *worker) add(ctx context.Context, began call, h hold, delay time.Duration) {
	c := w.begin(under(began, opAdd))
	q := Request{Name: c.Name, Token: c.Token}
	if err := w.fence.Call("Resource.Read", q, &c.Value); err != nil {
		c.Outcome, c.Reason = refused(err), errText(err)
		w.end(c)
		return
	}
	c.Count = 1 // from here on the write may happen
	w.write(c)
	_ = pause(ctx, max(0, delay))
	if h.Err() != nil {
		c.Outcome, c.Count = failed, 0
		w.end(c)
		return
	}
	q.Value = c.Value + 1
	err := w.fence.Call("Resource.Write", q, new(struct{}))
	c.Outcome, c.Reason = ok, errText(err)
	if err != nil {
		c.Outcome = refused(err)
	}
	w.end(c)
}

func refused(err error) outcome {
	if _, answered := errors.AsType[rpc.ServerError](err); answered {
		return lost
	}
	return unsure
}

// unlock releases the hold, sometimes without time for a confirmation.
func (w *worker) unlock(began call, h hold) {
	timeout := 2 * w.TTL
	if w.rnd.IntN(8) == 0 {
		timeout = time.Duration(w.rnd.Int64N(int64(3 * time.Millisecond)))
	}
	c := under(began, opUnlock)
	c.By = now().add(timeout)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c = w.begin(c)
	w.unlocked(c, h.Unlock(ctx))
}

// unlocked records the result of a release.
func (w *worker) unlocked(c call, err error) {
	c.Outcome, c.Reason = ok, errText(err)
	switch {
	case errors.Is(err, locker.ErrLost):
		c.Outcome, c.Reason = lost, reason(err)
	case err != nil:
		c.Outcome = unsure
	}
	w.end(c)
}

// reason returns a short form of why a hold ended.
func reason(err error) string {
	if loss, is := errors.AsType[*locker.LostError](err); is {
		return loss.Reason.String()
	}
	switch {
	case errors.Is(err, locker.ErrReleased):
		return "released"
	case errors.Is(err, locker.ErrClosed):
		return "closed"
	}
	return errText(err)
}
