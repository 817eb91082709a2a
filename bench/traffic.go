package main

import (
	"context"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/stats"
)

// traffic counts the messages of connections to etcd, as a stats.Handler. The bytes are
// those of the messages with gRPC's framing, without that of HTTP/2.
type traffic struct {
	sent, received atomic.Int64
	renewals       atomic.Int64 // of leases, among those sent
	bytes          atomic.Int64 // in both directions
}

func (t *traffic) HandleRPC(_ context.Context, event stats.RPCStats) {
	switch event := event.(type) {
	case *stats.OutPayload:
		t.sent.Add(1)
		t.bytes.Add(int64(event.WireLength))
		if _, ok := event.Payload.(*pb.LeaseKeepAliveRequest); ok {
			t.renewals.Add(1)
		}
	case *stats.InPayload:
		t.received.Add(1)
		t.bytes.Add(int64(event.WireLength))
	}
}

func (t *traffic) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (t *traffic) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (t *traffic) HandleConn(context.Context, stats.ConnStats)                       {}

// counters are readings of what only ever grows, or differences between two.
type counters struct {
	seconds        float64
	sent, received float64 // messages
	bytes          float64
	etcd, client   float64 // CPU time in seconds, of etcd and of this process
}

// now returns the present readings, without those of CPU time.
func (t *traffic) now() counters {
	return counters{
		seconds:  float64(time.Now().UnixNano()) / float64(time.Second),
		sent:     float64(t.sent.Load()),
		received: float64(t.received.Load()),
		bytes:    float64(t.bytes.Load()),
	}
}

// since returns how far the counters have moved since an earlier reading.
func (c counters) since(before counters) counters { return c.minus(before, 1) }

// beyond returns what is left of c without what would have happened in that time anyway.
func (c counters) beyond(idle counters) counters { return c.minus(idle, c.seconds/idle.seconds) }

func (c counters) minus(d counters, times float64) counters {
	return counters{
		seconds:  c.seconds - times*d.seconds,
		sent:     c.sent - times*d.sent,
		received: c.received - times*d.received,
		bytes:    c.bytes - times*d.bytes,
		etcd:     c.etcd - times*d.etcd,
		client:   c.client - times*d.client,
	}
}

// busy returns the CPU time of etcd as a percentage of one core.
func (c counters) busy() float64 { return 100 * c.etcd / c.seconds }
