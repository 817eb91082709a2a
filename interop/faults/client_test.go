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

// command is a line that a client process reads. The first one, whose verb is "begin", says who it is.
type command struct {
	ID        int
	Verb      string
	Name      string        `json:",omitempty"` // of a lock
	Within    time.Duration `json:",omitempty"` // the call's context lasts as long
	Process   string        `json:",omitempty"`
	Endpoints []string      `json:",omitempty"`
	TTL       time.Duration `json:",omitempty"`
	Names     []string      `json:",omitempty"` // of the locks of a load
}

// report is a line that it prints: the answer to a command, or what happens to a hold.
type report struct {
	ID      int // of the command; that of the lock for the end of a hold
	Verb    string
	Name    string        `json:",omitempty"`
	Token   int64         `json:",omitempty"`
	Began   instant       // of the call
	At      instant       // its end
	Until   instant       `json:",omitempty"` // the hold was certain when it was last looked at
	Late    time.Duration `json:",omitempty"` // after the end of its context
	Starved time.Duration `json:",omitempty"` // from the deadline to the end of a hold: for how long the process was not run
	Kind    string        `json:",omitempty"` // of the error
	Error   string        `json:",omitempty"`
	Wrote   string        `json:",omitempty"` // whether a turn under load has written: "yes", "no", "unknown"
}

// What an error is about.
const (
	lost     = "lost"
	released = "released"
	closed   = "closed"
	locked   = "locked"
	timeout  = "timeout"
	refused  = "refused" // a guarded transaction, by etcd
	other    = "other"
)

var errRefused = errors.New("the guard did not hold")

func kindOf(err error) string {
	// The cause of a loss may be anything, so that comes first.
	for _, k := range []struct {
		kind string
		is   error
	}{
		{lost, locker.ErrLost}, {released, locker.ErrReleased}, {closed, locker.ErrClosed}, {locked, locker.ErrLocked},
		{timeout, context.DeadlineExceeded}, {refused, errRefused},
	} {
		if errors.Is(err, k.is) {
			return k.kind
		}
	}
	return other
}

// client is what a client process consists of.
type client struct {
	name   string
	etcd   *clientv3.Client
	locker *locker.Client
	meter  *meter
	work   sync.WaitGroup // commands under way and holds that are followed
	rest   chan struct{}  // closed to end the load

	mu    sync.Mutex // guards what follows
	out   *json.Encoder
	holds map[string]*locker.Lock
}

// clientProcess obeys commands until the end of the input, and then closes everything and says what was
// left.
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
		name: begin.Process, etcd: etcd, locker: l, meter: newMeter(), rest: make(chan struct{}),
		out: json.NewEncoder(out), holds: make(map[string]*locker.Lock),
	}
	ctx, cancel := context.WithCancel(context.Background())
	for {
		var cmd command
		if err = commands.Decode(&cmd); err != nil {
			break
		}
		c.work.Go(func() { c.obey(ctx, cmd) })
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
	_ = c.out.Encode(r) // to a test that has gone there is nothing to say
}

func (r *report) fail(err error) {
	if err != nil {
		r.Kind, r.Error = kindOf(err), err.Error()
	}
}

// obey carries out one command and reports how it went.
func (c *client) obey(ctx context.Context, cmd command) {
	r := report{ID: cmd.ID, Verb: cmd.Verb, Name: cmd.Name, Began: now()}
	if l := c.hold(cmd.Name); l != nil {
		r.Token = l.Token()
	}
	do, ok := verbs[cmd.Verb]
	if !ok {
		do = func(*client, context.Context, command, *report) error { return errors.New("no such command") }
	}
	r.fail(c.timed(ctx, cmd.Within, &r, func(ctx context.Context) error { return do(c, ctx, cmd, &r) }))
	r.At = now()
	c.say(r)
}

// timed makes a call that has to end with its context, and notes in r by how much it did not, apart from
// the time for which the process was not run. Without a limit the context does not end.
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

// hops is how many goroutines, one after the other, have to have their turn before a call that is given
// up returns, or the end of a hold is known. Each of them may be kept waiting as the meter was.
const hops = 4

// verbs are the commands.
var verbs = map[string]func(*client, context.Context, command, *report) error{
	"lock":     (*client).lock,
	"try":      (*client).try,
	"get":      (*client).get,
	"unlock":   held(func(_ *client, ctx context.Context, l *locker.Lock, _ *report) error { return l.Unlock(ctx) }),
	"err":      held(func(_ *client, _ context.Context, l *locker.Lock, _ *report) error { return l.Err() }),
	"deadline": held((*client).deadline),
	"commit":   held((*client).commit),
	"guarded":  held((*client).guarded),
	"write":    held(func(*client, context.Context, *locker.Lock, *report) error { return nil }),
	"spin":     held((*client).spin),
	"spread":   (*client).spread,
	"load":     (*client).load,
	"rest":     func(c *client, _ context.Context, _ command, _ *report) error { close(c.rest); return nil },
}

func (c *client) hold(name string) *locker.Lock {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holds[name]
}

// held makes a command of what needs a hold.
func held(do func(*client, context.Context, *locker.Lock, *report) error) func(*client, context.Context, command, *report) error {
	return func(c *client, ctx context.Context, cmd command, r *report) error {
		l := c.hold(cmd.Name)
		if l == nil {
			return errors.New("it was never locked")
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
	r.Token = 0 // not that of a former hold
	if err != nil {
		return err
	}
	r.Token = l.Token()
	c.mu.Lock()
	c.holds[cmd.Name] = l
	c.mu.Unlock()
	c.work.Go(func() { c.follow(cmd.ID, l) })
	return nil
}

// follow looks at a hold until it ends, and reports the end with its cause.
func (c *client) follow(id int, l *locker.Lock) {
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

// guarded writes without asking Locker first, as a program may that uses the guard by itself.
func (c *client) guarded(ctx context.Context, l *locker.Lock, _ *report) error {
	resp, err := c.etcd.Txn(ctx).If(l.Guard()...).Then(clientv3.OpPut(writtenKey(l.Name()), c.name)).Commit()
	if err == nil && !resp.Succeeded {
		err = errRefused
	}
	return err
}

func writtenKey(name string) string { return "written/" + name }

// spin looks at the hold again and again, without leaving the processor to anybody else in the process,
// so that after a stop no timer of the process is noticed before.
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

// spread lets requests go to more members than the first, which keeps the streams that it has.
func (c *client) spread(_ context.Context, cmd command, _ *report) error {
	c.etcd.SetEndpoints(cmd.Endpoints...)
	return nil
}
