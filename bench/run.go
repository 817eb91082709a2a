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
	workload  workload
	etcd      etcdproc.Options // of the cluster that is started for each row
	endpoints []string         // of a running cluster to use instead
	peers     peerAddresses
	profiles  *profiles // nil if none are written
	progress  *progress
	id        string   // identifies the run, part of all lock names
	trouble   []string // errors of rows and peers, for the report
	version   string   // of etcd
}

// run measures a row: its sides run in interleaved rounds. It returns one result for each
// line of the row.
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
	participants := r.participants(w, endpoints)
	defer func() {
		r.progress.show("%s  %s: closing", w.id, w.work)
		for _, p := range participants {
			if closing := p.arena.close(); err == nil && !p.peer && ctx.Err() == nil {
				err = closing
			}
		}
	}()
	for _, p := range participants {
		r.progress.show("%s  %s: preparing %s", w.id, w.work, p.name)
		p.round, err = r.open(ctx, p)
		if err = r.tolerate(ctx, p, w, err); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", w.id, p.name, err)
		}
	}
	measured, err := r.runRounds(ctx, w, participants)
	if err != nil {
		return nil, err
	}
	for _, l := range w.lines {
		res, err := newResult(w, l, measured)
		if err != nil {
			return nil, err
		}
		results = append(results, res)
	}
	return results, nil
}

func (r *runner) participants(w row, endpoints []string) []*participant {
	var participants []*participant
	for i, s := range w.sides {
		if !s.peer || r.peers.known(s.name) {
			id := fmt.Sprintf("%s%02d%s", r.id, i, w.id)
			participants = append(participants, &participant{side: s, arena: &arena{endpoints: endpoints, peers: r.peers, workload: r.workload, id: id}})
		}
	}
	return participants
}

// runRounds runs all rounds, the participants alternating, and returns the figures by
// side and round.
func (r *runner) runRounds(ctx context.Context, w row, participants []*participant) (map[string][]figures, error) {
	n := cmp.Or(w.rounds, r.workload.rounds)
	measured := make(map[string][]figures)
	for i := range n {
		for _, p := range participants {
			if p.round == nil {
				continue
			}
			r.progress.show("%s  %s: round %d of %d, %s", w.id, w.work, i+1, n, p.name)
			f, err := r.runRound(ctx, p, fmt.Sprintf("%s-%s-%d", w.id, p.name, i+1))
			if err = r.tolerate(ctx, p, w, err); err != nil {
				return nil, fmt.Errorf("%s: %s, round %d: %w", w.id, p.name, i+1, err)
			}
			if p.round != nil {
				measured[p.name] = append(measured[p.name], f)
			}
		}
	}
	return measured, nil
}

// participant is a side that is being measured.
type participant struct {
	side
	arena *arena
	round round // nil if the peer has failed
}

// bound limits the time of a peer, because some peers wait forever.
func (p *participant) bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if !p.peer {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("did not finish within %v", limit))
}

// peerTimeout is how much longer than a round a peer may take before it counts as failed.
const peerTimeout = 20 * time.Second

func (r *runner) open(ctx context.Context, p *participant) (round, error) {
	ctx, cancel := p.bound(ctx, peerTimeout)
	defer cancel()
	do, err := p.side.open(ctx, p.arena)
	return do, withCause(ctx, err)
}

// withCause replaces ctx.Err by the cause of the context's end: peers return only the
// former.
func withCause(ctx context.Context, err error) error {
	if err != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}

// runRound runs one round of a participant, with profiles if they were requested. It
// collects garbage first, so that the round does not pay for that of others.
func (r *runner) runRound(ctx context.Context, p *participant, name string) (f figures, err error) {
	runtime.GC()
	ctx, cancel := p.bound(ctx, r.workload.period+peerTimeout)
	defer cancel()
	defer func() { err = withCause(ctx, err) }()
	if p.name != ours || r.profiles == nil {
		return p.round(ctx)
	}
	err = r.profiles.during(ctx, name, p.arena.endpoints[0], r.workload.period, func() (err error) {
		f, err = p.round(ctx)
		return err
	})
	return f, err
}

// tolerate records the failure of a peer, excludes the peer from the remaining rounds,
// and returns nil. Any other error is returned as it is.
func (r *runner) tolerate(ctx context.Context, p *participant, w row, err error) error {
	if err == nil || !p.peer || ctx.Err() != nil {
		return err
	}
	p.round = nil
	r.trouble = append(r.trouble, fmt.Sprintf("%s: %s: %v", w.id, p.name, err))
	return nil
}

// start starts a cluster for a row, unless one is already running, and returns its
// endpoints.
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
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	status, err := etcd.Status(ctx, endpoint)
	if err != nil {
		return "", fmt.Errorf("status of etcd at %s: %w", endpoint, err)
	}
	return status.Version, nil
}
