package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// runner runs rows.
type runner struct {
	scale     scale
	etcd      etcdproc.Options // each row has a cluster of its own, which starts from nothing
	endpoints []string         // of a running cluster instead
	peers     peerAddresses
	profiles  *profiles // nil for none
	progress  *progress
	id        string   // of the run, in all names
	trouble   []string // what went wrong
	version   string   // of etcd
}

// run has the sides of a row do their work in turns, and returns the row's lines.
func (r *runner) run(ctx context.Context, w row) (results []result, err error) {
	r.progress.show("%s  %s: starting", w.id, w.work)
	endpoints, stop, err := r.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.id, err)
	}
	defer stop()
	if r.version == "" {
		if r.version, err = versionOf(ctx, endpoints[0]); err != nil {
			return nil, err
		}
	}
	contestants := r.contestants(w, endpoints)
	defer func() {
		r.progress.show("%s  %s: closing", w.id, w.work)
		for _, c := range contestants {
			if closing := c.arena.close(); err == nil && !c.peer && ctx.Err() == nil {
				err = closing
			}
		}
	}()
	for _, c := range contestants {
		r.progress.show("%s  %s: %s gets ready", w.id, w.work, c.name)
		c.round, err = r.open(ctx, c)
		if err = r.excuse(ctx, c, w, err); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", w.id, c.name, err)
		}
	}
	measured, err := r.takeTurns(ctx, w, contestants)
	if err != nil {
		return nil, err
	}
	for _, l := range w.lines {
		res, err := resultOf(w, l, measured)
		if err != nil {
			return nil, err
		}
		results = append(results, res)
	}
	return results, nil
}

func (r *runner) contestants(w row, endpoints []string) []*contestant {
	var contestants []*contestant
	for i, s := range w.sides {
		if !s.peer || r.peers.known(s.name) {
			id := fmt.Sprintf("%s%02d%s", r.id, i, w.id)
			contestants = append(contestants, &contestant{side: s, arena: &arena{endpoints: endpoints, peers: r.peers, scale: r.scale, id: id}})
		}
	}
	return contestants
}

// takeTurns returns what each side has measured, round by round.
func (r *runner) takeTurns(ctx context.Context, w row, contestants []*contestant) (map[string][]figures, error) {
	n := cmp.Or(w.rounds, r.scale.rounds)
	measured := make(map[string][]figures)
	for i := range n {
		for _, c := range contestants {
			if c.round == nil {
				continue
			}
			r.progress.show("%s  %s: round %d of %d, %s", w.id, w.work, i+1, n, c.name)
			f, err := r.turn(ctx, c, fmt.Sprintf("%s-%s-%d", w.id, c.name, i+1))
			if err = r.excuse(ctx, c, w, err); err != nil {
				return nil, fmt.Errorf("%s: %s, round %d: %w", w.id, c.name, i+1, err)
			}
			if c.round != nil {
				measured[c.name] = append(measured[c.name], f)
			}
		}
	}
	return measured, nil
}

// contestant is a side at work.
type contestant struct {
	side
	arena *arena
	round round // nil if it has given up
}

// bound gives a peer a limited time: some wait for ever.
func (c *contestant) bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if !c.peer {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not come to an end within %v", limit))
}

// peerPatience is how much longer than a round a peer may take before it has failed.
const peerPatience = 20 * time.Second

func (r *runner) open(ctx context.Context, c *contestant) (round, error) {
	ctx, cancel := c.bound(ctx, peerPatience)
	defer cancel()
	round, err := c.side.open(ctx, c.arena)
	return round, because(ctx, err)
}

// because returns why the context has ended where a peer tells only that it has.
func because(ctx context.Context, err error) error {
	if err != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}

// turn does one round, with profiles if they are wanted. What others have left to collect is not its work.
func (r *runner) turn(ctx context.Context, c *contestant, name string) (f figures, err error) {
	runtime.GC()
	ctx, cancel := c.bound(ctx, r.scale.period+peerPatience)
	defer cancel()
	defer func() { err = because(ctx, err) }()
	if c.name != ours || r.profiles == nil {
		return c.round(ctx)
	}
	err = r.profiles.during(ctx, name, c.arena.endpoints[0], r.scale.period, func() (err error) {
		f, err = c.round(ctx)
		return err
	})
	return f, err
}

// excuse notes the trouble of a peer, which then has given up, and returns that of others.
func (r *runner) excuse(ctx context.Context, c *contestant, w row, err error) error {
	if err == nil || !c.peer || ctx.Err() != nil {
		return err
	}
	c.round = nil
	r.trouble = append(r.trouble, fmt.Sprintf("%s: %s: %v", w.id, c.name, err))
	return nil
}

// start returns the endpoints of the cluster for a row.
func (r *runner) start(ctx context.Context) (endpoints []string, stop func(), err error) {
	if len(r.endpoints) > 0 {
		return r.endpoints, func() {}, nil
	}
	dir, err := os.MkdirTemp(r.etcd.Dir, "etcd-")
	if err != nil {
		return nil, nil, err
	}
	o := r.etcd
	o.Dir = dir
	cluster, err := etcdproc.Start(ctx, o)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return cluster.Endpoints(), func() {
		cluster.Close()
		_ = os.RemoveAll(dir)
	}, nil
}

func versionOf(ctx context.Context, endpoint string) (version string, err error) {
	a := &arena{endpoints: []string{endpoint}}
	etcd, err := a.connect()
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	ctx, cancel := context.WithTimeout(ctx, peerPatience)
	defer cancel()
	status, err := etcd.Status(ctx, endpoint)
	if err != nil {
		return "", fmt.Errorf("ask etcd at %s: %w", endpoint, err)
	}
	return status.Version, nil
}
