package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/shirou/gopsutil/v4/process"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// site is what one line of -scale is measured with: an etcd process of its own, and
// connections to it whose messages are counted.
type site struct {
	*arena
	etcd     *process.Process
	client   *process.Process // this one
	observer *clientv3.Client // whose messages are not counted
	stop     func()           // ends etcd and removes its data
}

// locker returns a client of Locker with a connection of its own.
func (s *site) locker(ctx context.Context) (*locker.Client, error) {
	connections, err := s.connections(ctx, 1)
	if err != nil {
		return nil, err
	}
	return newLocker(s.arena, connections[0])
}

// newSite starts an etcd process.
func (r *runner) newSite(ctx context.Context) (_ *site, err error) {
	cluster, stop, err := r.startCluster(ctx)
	if err != nil {
		return nil, err
	}
	s := &site{arena: &arena{endpoints: cluster.Endpoints(), id: r.id}, stop: stop}
	defer func() {
		if err != nil {
			_ = s.close()
		}
	}()
	if s.etcd, err = process.NewProcessWithContext(ctx, int32(cluster.Member(0).Pid())); err != nil {
		return nil, fmt.Errorf("process of etcd: %w", err)
	}
	if s.client, err = process.NewProcessWithContext(ctx, int32(os.Getpid())); err != nil {
		return nil, fmt.Errorf("this process: %w", err)
	}
	if s.observer, err = s.connect(); err != nil {
		return nil, err
	}
	if r.version == "" {
		r.version, err = versionOf(ctx, s.endpoints[0])
	}
	return s, err
}

func (s *site) close() error {
	defer s.stop()
	return s.arena.close()
}

// footprint is what this process and etcd occupy.
type footprint struct {
	client   usage
	resident float64 // memory of etcd, including what it has mapped of its database, bytes
	database float64 // what is in use of it, bytes
}

func (s *site) footprint(ctx context.Context) (footprint, error) {
	info, err := s.etcd.MemoryInfoWithContext(ctx)
	if err != nil {
		return footprint{}, fmt.Errorf("memory of etcd: %w", err)
	}
	status, err := s.observer.Status(ctx, s.endpoints[0])
	if err != nil {
		return footprint{}, fmt.Errorf("status of etcd: %w", err)
	}
	return footprint{usageNow(), float64(info.RSS), float64(status.DbSizeInUse)}, nil
}

// now returns the present readings of all counters.
func (s *site) now(ctx context.Context) (counters, error) {
	c := s.traffic.now()
	for p, seconds := range map[*process.Process]*float64{s.etcd: &c.etcd, s.client: &c.client} {
		times, err := p.TimesWithContext(ctx)
		if err != nil {
			return counters{}, fmt.Errorf("CPU time: %w", err)
		}
		*seconds = times.User + times.System
	}
	return c, nil
}

// during returns how far the counters move while work is done.
func (s *site) during(ctx context.Context, work func() error) (counters, error) {
	before, err := s.now(ctx)
	if err != nil {
		return counters{}, err
	}
	if err := work(); err != nil {
		return counters{}, err
	}
	after, err := s.now(ctx)
	return after.since(before), err
}

// settling is the time from the last request of a setup to the first measurement.
const settling = 500 * time.Millisecond

// settled returns the footprint once a setup has settled.
func (s *site) settled(ctx context.Context) (footprint, error) {
	if err := pause(ctx, settling); err != nil {
		return footprint{}, err
	}
	return s.footprint(ctx)
}

// resting returns how far the counters move in a time without work.
func (s *site) resting(ctx context.Context, idle time.Duration) (counters, error) {
	return s.during(ctx, func() error { return pause(ctx, idle) })
}
