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

// worker is a goroutine of a client process. It locks a name, does what the lock protects, gives it up,
// and begins again.
type worker struct {
	target
	*recorder
	locks  locks
	etcd   *clientv3.Client
	fence  *rpc.Client
	rnd    *rand.Rand
	number int

	over    []finished // holds that have ended, to be looked at again
	endings sync.WaitGroup
}

// finished is a hold that has ended, and the call that began it.
type finished struct {
	hold
	began call
}

// run takes turns until ctx ends.
func (w *worker) run(ctx context.Context) {
	if w.Load == loadCrowd {
		_ = pause(ctx, time.Duration(w.rnd.Int64N(int64(arrival))))
	}
	for ctx.Err() == nil {
		w.turn(ctx)
	}
	w.endings.Wait()
}

// value is that of the entry of a call. Only holds with the same value are shared.
func (w *worker) value(c call) string {
	if w.shares() {
		return c.Process
	}
	return c.who()
}

// sentinel reports whether the worker is one of those that hold posts, and for long.
func (w *worker) sentinel() bool { return w.number <= 2 && w.Load == "" }

// turn is one hold, or one that could not be had.
func (w *worker) turn(ctx context.Context) {
	w.lookBack(ctx)
	c := call{Op: opLock, Name: w.name(w.rnd.IntN(w.Names)), Worker: w.number}
	if w.sentinel() {
		c.Name = w.post(w.rnd.IntN(4) / 3)
	}
	patience := 6 * w.TTL
	switch w.rnd.IntN(20) {
	case 0, 1:
		c.Op = opTry
	case 2, 3, 4: // gives up, mostly while it waits
		patience = time.Duration(w.rnd.Int64N(int64(300 * time.Millisecond)))
	}
	c.By = now().add(patience)
	c = w.begin(c)
	acquiring, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	h, err := w.locks.acquire(acquiring, c.Name, w.value(c), c.Op == opTry)
	if ctx.Err() != nil {
		c.By = min(c.By, now()) // it was told to stop
	}
	if err != nil {
		c.Outcome, c.Reason = failed, text(err)
		w.end(c)
		if !errors.Is(err, locker.ErrLocked) && !errors.Is(err, context.DeadlineExceeded) {
			_ = pause(ctx, 50*time.Millisecond) // etcd refuses: do not hammer it
		}
		return
	}
	c.Outcome, c.Token = ok, h.Token()
	c = w.end(c)
	w.endings.Go(func() { w.attend(c, h) })
	w.hold(ctx, c, h)
}

// attend looks at a hold again and again, whatever its holder is busy with, and notes its end. Each
// hold ends, at the latest when everything is closed.
func (w *worker) attend(began call, h hold) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			w.look(began, h)
			continue
		case <-h.Context().Done():
		}
		if cause := context.Cause(h.Context()); !errors.Is(cause, locker.ErrReleased) {
			w.note(call{Op: opEnded, Name: began.Name, Hold: began.ID, Token: began.Token, Reason: reason(cause)})
		}
		return
	}
}

// hold does what the lock protects, for as long as it likes, and gives it up.
func (w *worker) hold(ctx context.Context, began call, h hold) {
	w.look(began, h)
	until := time.Now().Add(w.howLong())
	if w.rnd.IntN(2) == 0 {
		w.commit(ctx, began, h)
	}
	if w.rnd.IntN(10) == 0 {
		w.setValue(ctx, began, h)
	}
	if w.sentinel() || w.rnd.IntN(4) > 0 {
		w.add(ctx, began, h, time.Until(until)/2)
	}
	lasting, stop := context.WithCancel(ctx)
	defer context.AfterFunc(h.Context(), stop)()
	_ = pause(lasting, time.Until(until))
	stop()
	w.look(began, h)
	w.unlock(began, h)
	w.over = append(w.over, finished{h, began})
	if len(w.over) > 4 {
		w.over = w.over[1:]
	}
}

// howLong draws the length of a hold: mostly short, now and then longer than the lease lives.
func (w *worker) howLong() time.Duration {
	switch n := w.rnd.IntN(100); {
	case w.Load != "":
		return 500*time.Millisecond + time.Duration(w.rnd.Int64N(int64(1500*time.Millisecond)))
	case w.sentinel():
		return w.Hold/8 + time.Duration(w.rnd.Int64N(int64(w.Hold)))
	case n < 4:
		return w.TTL/4 + time.Duration(w.rnd.Int64N(int64(w.TTL)))
	case n < 25:
		return 50*time.Millisecond + time.Duration(w.rnd.Int64N(int64(150*time.Millisecond)))
	default:
		return time.Duration(w.rnd.Int64N(int64(15 * time.Millisecond)))
	}
}

// under returns a call that is made under a hold.
func under(began call, o op) call {
	return call{Op: o, Name: began.Name, Hold: began.ID, Token: began.Token, Worker: began.Worker}
}

// look asks the hold whether it still is one.
func (w *worker) look(began call, h hold) bool {
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

// lookBack asks one of the holds that have ended, and tries to write with it.
func (w *worker) lookBack(ctx context.Context) {
	if len(w.over) == 0 || w.rnd.IntN(3) > 0 {
		return
	}
	f := w.over[w.rnd.IntN(len(w.over))]
	w.look(f.began, f.hold)
	c := w.begin(under(f.began, opStale))
	wctx, cancel := context.WithTimeout(ctx, w.TTL)
	defer cancel()
	resp, err := w.etcd.Txn(wctx).If(f.Guard()...).Then(w.element(c)).Commit()
	switch {
	case err != nil:
		c.Outcome, c.Reason = unsure, text(err)
	case resp.Succeeded:
		c.Outcome, c.Value = ok, resp.Header.Revision
	default:
		c.Outcome = failed
	}
	w.end(c)
}

// element is the put of an element of the guarded set; its value says under which token.
func (w *worker) element(c call) clientv3.Op {
	return clientv3.OpPut(elementKey(c.Name, c.who()), strconv.FormatInt(c.Token, 10))
}

func (w *worker) commit(ctx context.Context, began call, h hold) {
	wctx, cancel := context.WithTimeout(ctx, w.TTL)
	defer cancel()
	c := under(began, opCommit)
	c.By = now().add(w.TTL)
	c = w.begin(c)
	resp, err := h.Commit(wctx, w.element(c))
	c.Outcome, c.Reason = verdict(err), text(err)
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
	c.Outcome, c.Reason = verdict(err), text(err)
	w.end(c)
}

// verdict tells what an error of a guarded write means by the library's documentation.
func verdict(err error) outcome {
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

// add reads the counter of the resource, thinks, and writes it one higher, unless it learns meanwhile
// that the hold was lost. Between that look and the write the process may be stopped.
func (w *worker) add(ctx context.Context, began call, h hold, think time.Duration) {
	c := w.begin(under(began, opAdd))
	q := Request{Name: c.Name, Token: c.Token}
	if err := w.fence.Call("Resource.Read", q, &c.Value); err != nil {
		c.Outcome, c.Reason = refused(err), text(err)
		w.end(c)
		return
	}
	c.Count = 1 // the write may come
	w.write(c)
	_ = pause(ctx, max(0, think))
	if h.Err() != nil {
		c.Outcome, c.Count = failed, 0
		w.end(c)
		return
	}
	q.Value = c.Value + 1
	err := w.fence.Call("Resource.Write", q, new(struct{}))
	c.Outcome, c.Reason = ok, text(err)
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

// unlock gives the hold up, sometimes without the time to see it confirmed.
func (w *worker) unlock(began call, h hold) {
	patience := 2 * w.TTL
	if w.rnd.IntN(8) == 0 {
		patience = time.Duration(w.rnd.Int64N(int64(3 * time.Millisecond)))
	}
	c := under(began, opUnlock)
	c.By = now().add(patience)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c = w.begin(c)
	err := h.Unlock(ctx)
	c.Outcome, c.Reason = ok, text(err)
	switch {
	case errors.Is(err, locker.ErrLost):
		c.Outcome, c.Reason = lost, reason(err)
	case err != nil:
		c.Outcome = unsure
	}
	w.end(c)
}

// reason is the short form of why a hold has ended.
func reason(err error) string {
	if lost, is := errors.AsType[*locker.LostError](err); is {
		return lost.Reason.String()
	}
	switch {
	case errors.Is(err, locker.ErrReleased):
		return "released"
	case errors.Is(err, locker.ErrClosed):
		return "closed"
	}
	return text(err)
}
