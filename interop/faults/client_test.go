//go:build unix

package faults

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"runtime"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
)

// command is a line that a client process reads. The first one has the verb "begin" and
// configures the process.
type command struct {
	ID        int
	Verb      string
	Name      string        `json:",omitempty"` // of a lock
	Timeout   time.Duration `json:",omitempty"` // of the call's context; 0 for none
	Process   string        `json:",omitempty"`
	Endpoints []string      `json:",omitempty"`
	TTL       time.Duration `json:",omitempty"`
	Names     []string      `json:",omitempty"` // of the locks of the load
}

// report is a line that a client process prints: the answer to a command, or the end of a
// hold.
type report struct {
	ID      int // of the command; for the end of a hold, of its lock command
	Verb    string
	Name    string        `json:",omitempty"`
	Token   int64         `json:",omitempty"`
	Began   instant       // of the call
	At      instant       // its end
	Until   instant       `json:",omitempty"` // when the hold was last known to be certain
	Late    time.Duration `json:",omitempty"` // how long after the end of its context the call returned
	Starved time.Duration `json:",omitempty"` // how long the process did not run between the deadline and the end of the hold
	Kind    string        `json:",omitempty"` // of the error, see below
	Error   string        `json:",omitempty"`
	Wrote   string        `json:",omitempty"` // whether a cycle of the load wrote: "yes", "no" or "unknown"
}

// The kinds of errors in reports.
const (
	kindLost     = "lost"
	kindReleased = "released"
	kindClosed   = "closed"
	kindLocked   = "locked"
	kindTimeout  = "timeout"
	kindRefused  = "refused" // the guard of a transaction failed
	kindOther    = "other"
)

var errRefused = errors.New("the guard did not hold")

func kindOf(err error) string {
	// ErrLost comes first, because its cause may match any of the others.
	for _, k := range []struct {
		kind string
		is   error
	}{
		{kindLost, locker.ErrLost}, {kindReleased, locker.ErrReleased}, {kindClosed, locker.ErrClosed}, {kindLocked, locker.ErrLocked},
		{kindTimeout, context.DeadlineExceeded}, {kindRefused, errRefused},
	} {
		if errors.Is(err, k.is) {
			return k.kind
		}
	}
	return kindOther
}

// client is the state of a client process.
type client struct {
	name    string
	etcd    *clientv3.Client
	locker  *locker.Client
	meter   *meter
	work    sync.WaitGroup // running commands and watched holds
	endLoad chan struct{}  // closed to end the load

	mu    sync.Mutex // guards the fields below
	out   *json.Encoder
	holds map[string]*locker.Lock
}

// clientProcess executes commands until the end of its input. It then closes everything
// and reports any goroutine that is left.
func clientProcess(in io.Reader, out io.Writer) error {
	commands := json.NewDecoder(in)
	var begin command
	if err := commands.Decode(&begin); err != nil {
		return err
	}
	etcd, err := connect(begin.Endpoints...)
	if err != nil {
		return err
	}
	l, err := locker.New(etcd, locker.WithTTL(begin.TTL))
	if err != nil {
		return errors.Join(err, etcd.Close())
	}
	c := &client{
		name: begin.Process, etcd: etcd, locker: l, meter: newMeter(), endLoad: make(chan struct{}),
		out: json.NewEncoder(out), holds: make(map[string]*locker.Lock),
	}
	ctx, cancel := context.WithCancel(context.Background())
	for {
		var cmd command
		if err = commands.Decode(&cmd); err != nil {
			break
		}
		c.work.Go(func() { c.execute(ctx, cmd) })
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	cancel()
	bye := report{Verb: "bye", Began: now()}
	err = errors.Join(err, l.Close())
	c.work.Wait()
	err = errors.Join(err, etcd.Close())
	c.meter.end()
	bye.fail(errors.Join(err, goleak.Find()))
	bye.At = now()
	c.say(bye)
	return nil
}

func (c *client) say(r report) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.out.Encode(r) // fails only if the test is gone
}

func (r *report) fail(err error) {
	if err != nil {
		r.Kind, r.Error = kindOf(err), err.Error()
	}
}

// execute executes a command and reports its result.
func (c *client) execute(ctx context.Context, cmd command) {
	r := report{ID: cmd.ID, Verb: cmd.Verb, Name: cmd.Name, Began: now()}
	if l := c.holdOf(cmd.Name); l != nil {
		r.Token = l.Token()
	}
	do, ok := verbs[cmd.Verb]
	if !ok {
		do = func(*client, context.Context, command, *report) error { return errors.New("no such command") }
	}
	r.fail(c.timed(ctx, cmd.Timeout, &r, func(ctx context.Context) error { return do(c, ctx, cmd, &r) }))
	r.At = now()
	c.say(r)
}

// timed makes a call that must return when its context ends. It records in r how late the
// call returned, less an allowance for the time in which the process did not run. If
// limit is 0, the context has no deadline.
func (c *client) timed(ctx context.Context, limit time.Duration, r *report, call func(context.Context) error) error {
	if limit == 0 {
		return call(ctx)
	}
	end := now().add(limit)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := call(ctx)
	r.Late = max(r.Late, now().since(end)-hops*c.meter.since(end))
	return err
}

// hops is the number of goroutines that have to run, one after the other, before a
// canceled call returns or the end of a hold is reported. Each may be delayed as much as
// the meter was.
const hops = 4

// verbs maps the verb of each command to its implementation.
var verbs = map[string]func(*client, context.Context, command, *report) error{
	"lock":     (*client).lock,
	"try":      (*client).try,
	"get":      (*client).get,
	"unlock":   withHold(func(_ *client, ctx context.Context, l *locker.Lock, _ *report) error { return l.Unlock(ctx) }),
	"err":      withHold(func(_ *client, _ context.Context, l *locker.Lock, _ *report) error { return l.Err() }),
	"deadline": withHold((*client).deadline),
	"commit":   withHold((*client).commit),
	"guarded":  withHold((*client).guarded),
	"write":    withHold(func(*client, context.Context, *locker.Lock, *report) error { return nil }),
	"spin":     withHold((*client).spin),
	"spread":   (*client).spread,
	"load":     (*client).load,
	"endload":  func(c *client, _ context.Context, _ command, _ *report) error { close(c.endLoad); return nil },
}

func (c *client) holdOf(name string) *locker.Lock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holds[name]
}

// withHold makes a command of a function that needs a hold.
func withHold(do func(*client, context.Context, *locker.Lock, *report) error) func(*client, context.Context, command, *report) error {
	return func(c *client, ctx context.Context, cmd command, r *report) error {
		l := c.holdOf(cmd.Name)
		if l == nil {
			return errors.New("the name was never locked")
		}
		return do(c, ctx, l, r)
	}
}

func (c *client) lock(ctx context.Context, cmd command, r *report) error {
	l, err := c.locker.Lock(ctx, cmd.Name, c.name)
	return c.taken(l, err, cmd, r)
}

func (c *client) try(ctx context.Context, cmd command, r *report) error {
	l, err := c.locker.TryLock(ctx, cmd.Name, c.name)
	return c.taken(l, err, cmd, r)
}

func (c *client) taken(l *locker.Lock, err error, cmd command, r *report) error {
	r.Token = 0 // not that of an earlier hold
	if err != nil {
		return err
	}
	r.Token = l.Token()
	c.mu.Lock()
	c.holds[cmd.Name] = l
	c.mu.Unlock()
	c.work.Go(func() { c.watchHold(cmd.ID, l) })
	return nil
}

// watchHold polls a hold until it ends, and reports the end with its cause.
func (c *client) watchHold(id int, l *locker.Lock) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	r := report{ID: id, Verb: "ended", Name: l.Name(), Token: l.Token(), Began: now()}
	deadline := r.Began.add(time.Until(l.Deadline()))
	for {
		select {
		case <-l.Context().Done():
			r.At, r.Starved = now(), c.meter.since(deadline)
			r.fail(context.Cause(l.Context()))
			c.say(r)
			return
		case <-ticker.C:
		}
		if at := now(); l.Err() == nil {
			r.Until, deadline = at, at.add(time.Until(l.Deadline()))
		}
	}
}

func (c *client) get(ctx context.Context, cmd command, r *report) error {
	holder, err := c.locker.Get(ctx, cmd.Name)
	r.Token = holder.Token
	return err
}

// deadline reports the deadline as the time until which the hold is certain.
func (c *client) deadline(_ context.Context, l *locker.Lock, r *report) error {
	if err := l.Err(); err != nil {
		return err
	}
	r.Until = now().add(time.Until(l.Deadline()))
	return nil
}

func (c *client) commit(ctx context.Context, l *locker.Lock, _ *report) error {
	_, err := l.Commit(ctx, clientv3.OpPut(writtenKey(l.Name()), c.name))
	return err
}

// guarded writes in a transaction with the guard, without calling Locker.
func (c *client) guarded(ctx context.Context, l *locker.Lock, _ *report) error {
	resp, err := c.etcd.Txn(ctx).If(l.Guard()...).Then(clientv3.OpPut(writtenKey(l.Name()), c.name)).Commit()
	if err == nil && !resp.Succeeded {
		err = errRefused
	}
	return err
}

func writtenKey(name string) string { return "written/" + name }

// spin calls Err in a loop without yielding the only processor of the process, so that
// after a stop it runs before any timer of the process fires.
func (c *client) spin(_ context.Context, l *locker.Lock, r *report) error {
	runtime.GOMAXPROCS(1)
	c.say(report{ID: r.ID, Verb: "spinning"})
	for {
		at := now()
		if err := l.Err(); err != nil {
			return err
		}
		r.Until = at
	}
}

// spread lets requests go to more members. Streams that are open stay with their member.
func (c *client) spread(_ context.Context, cmd command, _ *report) error {
	c.etcd.SetEndpoints(cmd.Endpoints...)
	return nil
}
