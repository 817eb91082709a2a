package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/shirou/gopsutil/v4/process"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// site is what one size of -scale is measured with: an etcd process, connections to it
// whose messages are counted, and clients. The measuring goroutine owns it.
type site struct {
	*arena
	ctx      context.Context // ends with the first goroutine of the group that fails
	cancel   context.CancelFunc
	group    *errgroup.Group
	clients  []*locker.Client
	process  *process.Process // of etcd
	observer *clientv3.Client // whose messages are not counted
	traffic  traffic
	stop     func() // ends etcd and removes its data
}

// newSite starts an etcd process.
func (r *runner) newSite(ctx context.Context) (_ *site, err error) {
	dir, err := os.MkdirTemp(r.etcd.Dir, "etcd-")
	if err != nil {
		return nil, err
	}
	o := r.etcd
	o.Dir = dir
	cluster, err := etcdproc.Start(ctx, o)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := &site{arena: &arena{endpoints: cluster.Endpoints(), id: r.id}, stop: func() {
		cluster.Close()
		_ = os.RemoveAll(dir)
	}}
	ctx, s.cancel = context.WithCancel(ctx)
	s.group, s.ctx = errgroup.WithContext(ctx)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.process, err = process.NewProcessWithContext(ctx, int32(cluster.Member(0).Pid())); err != nil {
		return nil, fmt.Errorf("process of etcd: %w", err)
	}
	if s.observer, err = s.connect(); err != nil {
		return nil, err
	}
	if r.version == "" {
		r.version, err = versionOf(ctx, s.endpoints[0])
	}
	return s, err
}

// close ends everything. The connections come first, so that nothing waits for answers:
// what is in etcd goes with it.
func (s *site) close() error {
	defer s.stop()
	err := s.arena.close()
	s.cancel()
	_ = s.group.Wait() // an error from before has ended ctx, and was reported as its cause
	errs := make([]error, len(s.clients))
	_ = each(context.Background(), len(s.clients), 64, func(_ context.Context, i int) error {
		if err := s.clients[i].Close(); !errors.Is(err, locker.ErrEtcdClosed) {
			errs[i] = err
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// connections returns n connections that are established and counted.
func (s *site) connections(ctx context.Context, n int) ([]*clientv3.Client, error) {
	connections := make([]*clientv3.Client, n)
	return connections, each(ctx, n, 16, func(ctx context.Context, i int) (err error) {
		if connections[i], err = s.connect(grpc.WithStatsHandler(&s.traffic)); err != nil {
			return err
		}
		_, err = connections[i].Get(ctx, "connected")
		return err
	})
}

// newClients returns n clients that share the connections.
func (s *site) newClients(connections []*clientv3.Client, n int, opts ...locker.Option) ([]*locker.Client, error) {
	opts = append(opts, locker.WithPrefix(lockerPrefix))
	first := len(s.clients)
	for i := range n {
		c, err := locker.New(connections[i%len(connections)], opts...)
		if err != nil {
			return nil, err
		}
		s.clients = append(s.clients, c)
	}
	return s.clients[first:], nil
}

// footprint is what this process and etcd occupy.
type footprint struct {
	client   usage
	resident float64 // memory of etcd, bytes
	database float64 // bytes
}

func (s *site) footprint(ctx context.Context) (f footprint, err error) {
	info, err := s.process.MemoryInfoWithContext(ctx)
	if err != nil {
		return f, fmt.Errorf("memory of etcd: %w", err)
	}
	status, err := s.observer.Status(ctx, s.endpoints[0])
	if err != nil {
		return f, fmt.Errorf("status of etcd: %w", err)
	}
	return footprint{usageNow(), float64(info.RSS), float64(status.DbSize)}, nil
}

// perItem returns how much a quantity has grown for each of n.
func perItem(now, before float64, n int) float64 { return max(0, now-before) / float64(n) }

// counters are readings of what only ever grows.
type counters struct {
	seconds  float64
	messages float64 // sent
	bytes    float64 // in both directions
	cpu      float64 // seconds, of etcd
}

// during returns how far the counters move while work is done.
func (s *site) during(ctx context.Context, work func() error) (counters, error) {
	before, err := s.cpu(ctx)
	if err != nil {
		return counters{}, err
	}
	messages, bytes, began := s.traffic.sent.Load(), s.traffic.bytes.Load(), time.Now()
	if err := work(); err != nil {
		return counters{}, err
	}
	moved := counters{time.Since(began).Seconds(), float64(s.traffic.sent.Load() - messages), float64(s.traffic.bytes.Load() - bytes), 0}
	after, err := s.cpu(ctx)
	moved.cpu = after - before
	return moved, err
}

// rest waits until a setup has settled. It returns the footprint then, and how far the
// counters move in a time without work.
func (s *site) rest(ctx context.Context, settle, idle time.Duration) (footprint, counters, error) {
	if err := pause(ctx, settle); err != nil {
		return footprint{}, counters{}, err
	}
	f, err := s.footprint(ctx)
	if err != nil {
		return f, counters{}, err
	}
	moved, err := s.during(ctx, func() error { return pause(ctx, idle) })
	return f, moved, err
}

// cpu returns the CPU time of etcd in seconds. The system counts it in hundredths.
func (s *site) cpu(ctx context.Context) (float64, error) {
	times, err := s.process.TimesWithContext(ctx)
	if err != nil {
		return 0, fmt.Errorf("CPU time of etcd: %w", err)
	}
	return times.User + times.System, nil
}

// beyond returns what is left of c without what would have happened in that time anyway.
func (c counters) beyond(idle counters) counters {
	rest := func(all, other float64) float64 { return max(0, all-other/idle.seconds*c.seconds) }
	return counters{c.seconds, rest(c.messages, idle.messages), rest(c.bytes, idle.bytes), rest(c.cpu, idle.cpu)}
}

// busy returns the CPU time as a percentage of one core.
func (c counters) busy() float64 { return 100 * c.cpu / c.seconds }

// traffic counts the messages of connections as a stats.Handler. The bytes are those of the
// messages with gRPC's framing, without that of HTTP/2.
type traffic struct{ sent, bytes atomic.Int64 }

func (t *traffic) HandleRPC(_ context.Context, event stats.RPCStats) {
	switch event := event.(type) {
	case *stats.OutPayload:
		t.sent.Add(1)
		t.bytes.Add(int64(event.WireLength))
	case *stats.InPayload:
		t.bytes.Add(int64(event.WireLength))
	}
}

func (t *traffic) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (t *traffic) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (t *traffic) HandleConn(context.Context, stats.ConnStats)                       {}
