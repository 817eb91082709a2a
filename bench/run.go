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
	endpoints, stop, err := r.cluster(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.id, err)
	}
	defer stop()
	if r.version == "" {
		if r.version, err = versionOf(ctx, endpoints[0]); err != nil {
			return nil, err
		}
	}
	participants := r.participants(w)
	defer func() {
		r.progress.show("%s  %s: closing", w.id, w.work)
		for _, p := range participants {
			if closing := p.close(); err == nil && ctx.Err() == nil {
				err = closing
			}
		}
	}()
	measured, err := r.runRounds(ctx, w, participants, endpoints)
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

// runRounds runs all rounds and returns the figures by side and round. The participants
// take turns, and each round begins with the next of them.
func (r *runner) runRounds(ctx context.Context, w row, participants []*participant, endpoints []string) (map[string][]figures, error) {
	n := cmp.Or(w.rounds, r.workload.rounds)
	measured := make(map[string][]figures)
	for i := range n {
		// Which of several members a client is connected to is chance, so that is drawn again.
		if i == 0 || len(endpoints) > 1 {
			for _, p := range participants {
				r.progress.show("%s  %s: preparing %s", w.id, w.work, p.name)
				err := r.open(ctx, w, p, endpoints)
				if err = r.tolerate(ctx, p, w, err); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", w.id, p.name, err)
				}
			}
		}
		for j := range participants {
			p := participants[(i+j)%len(participants)]
			if p.failed {
				continue
			}
			r.progress.show("%s  %s: round %d of %d, %s", w.id, w.work, i+1, n, p.name)
			f, err := r.runRound(ctx, p, fmt.Sprintf("%s-%s-%d", w.id, p.name, i+1))
			if err = r.tolerate(ctx, p, w, err); err != nil {
				return nil, fmt.Errorf("%s: %s, round %d: %w", w.id, p.name, i+1, err)
			}
			if !p.failed {
				measured[p.name] = append(measured[p.name], f)
			}
		}
	}
	return measured, nil
}

// participant is a side that is being measured.
type participant struct {
	side
	index  int    // of the side in its row
	opened int    // how often
	arena  *arena // nil if it is not open
	round  round
	failed bool // for good; only peers
}

func (r *runner) participants(w row) []*participant {
	var participants []*participant
	for i, s := range w.sides {
		if !s.peer || r.peers.known(s.name) {
			participants = append(participants, &participant{side: s, index: i})
		}
	}
	return participants
}

// open opens a participant, again if it is open. Each time it uses other names.
func (r *runner) open(ctx context.Context, w row, p *participant, endpoints []string) error {
	if p.failed {
		return nil
	}
	if err := p.close(); err != nil {
		return err
	}
	p.opened++
	id := fmt.Sprintf("%s%02d%02d%s", r.id, p.index, p.opened, w.id)
	p.arena = &arena{endpoints: endpoints, peers: r.peers, workload: r.workload, id: id}
	ctx, cancel := p.bound(ctx, 0)
	defer cancel()
	var err error
	p.round, err = p.side.open(ctx, p.arena)
	return withCause(ctx, err)
}

// close releases what a participant has. That of a peer may fail.
func (p *participant) close() error {
	if p.arena == nil {
		return nil
	}
	err := p.arena.close()
	p.arena = nil
	if p.peer {
		return nil
	}
	return err
}

// How much longer than a round of a fixed time a side may take before it counts as failed.
// Some peers wait forever; what else takes long depends on the disk.
const (
	peerTimeout = 20 * time.Second
	sideTimeout = 5 * time.Minute
)

// bound limits the time of a participant's work, of which period is planned.
func (p *participant) bound(ctx context.Context, period time.Duration) (context.Context, context.CancelFunc) {
	limit := period + sideTimeout
	if p.peer {
		limit = period + peerTimeout
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("did not finish within %v", limit))
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
	ctx, cancel := p.bound(ctx, r.workload.period)
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
	p.failed = true
	r.trouble = append(r.trouble, fmt.Sprintf("%s: %s: %v", w.id, p.name, err))
	return nil
}

// cluster returns the endpoints of a new cluster for a row, or of the one that is running.
func (r *runner) cluster(ctx context.Context) (endpoints []string, stop func(), err error) {
	if len(r.endpoints) > 0 {
		return r.endpoints, func() {}, nil
	}
	cluster, stop, err := r.startCluster(ctx)
	if err != nil {
		return nil, nil, err
	}
	return cluster.Endpoints(), stop, nil
}

// startCluster starts a cluster with empty data directories, which stop removes.
func (r *runner) startCluster(ctx context.Context) (cluster *etcdproc.Cluster, stop func(), err error) {
	dir, err := os.MkdirTemp(r.etcd.Dir, "etcd-")
	if err != nil {
		return nil, nil, err
	}
	o := r.etcd
	o.Dir = dir
	if cluster, err = etcdproc.Start(ctx, o); err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return cluster, func() {
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
