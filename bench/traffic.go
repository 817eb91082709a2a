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
	reads          atomic.Int64 // outside of transactions, among those sent
	bytes          atomic.Int64 // in both directions
}

func (t *traffic) HandleRPC(_ context.Context, event stats.RPCStats) {
	switch event := event.(type) {
	case *stats.OutPayload:
		t.sent.Add(1)
		t.bytes.Add(int64(event.WireLength))
		switch event.Payload.(type) {
		case *pb.LeaseKeepAliveRequest:
			t.renewals.Add(1)
		case *pb.RangeRequest:
			t.reads.Add(1)
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
	reads          float64 // among those sent
	bytes          float64
	etcd, client   float64 // CPU time in seconds, of etcd and of this process
}

// now returns the present readings, without those of CPU time.
func (t *traffic) now() counters {
	return counters{
		seconds:  float64(time.Now().UnixNano()) / float64(time.Second),
		sent:     float64(t.sent.Load()),
		received: float64(t.received.Load()),
		reads:    float64(t.reads.Load()),
		bytes:    float64(t.bytes.Load()),
	}
}

// since returns how far the counters have moved since an earlier reading.
func (c counters) since(before counters) counters { return c.minus(before, 1) }

// beyond returns what is left of c without what would have happened in that time anyway.
func (c counters) beyond(idle counters) counters { return c.minus(idle, c.seconds/idle.seconds) }

// plus returns the sum of two differences.
func (c counters) plus(d counters) counters { return c.minus(d, -1) }

// messagesPerCheck is how many messages a client of Locker sends to learn whether its watches
// are alive: a read, a watch and its end. It makes no other reads while it waits for a lock.
const messagesPerCheck = 3

// sentBesideChecks returns the messages sent by clients that wait for locks, without those of
// the checks, of which there are as many as the wait is long.
func (c counters) sentBesideChecks() float64 { return c.sent - messagesPerCheck*c.reads }

func (c counters) minus(d counters, times float64) counters {
	return counters{
		seconds:  c.seconds - times*d.seconds,
		sent:     c.sent - times*d.sent,
		received: c.received - times*d.received,
		reads:    c.reads - times*d.reads,
		bytes:    c.bytes - times*d.bytes,
		etcd:     c.etcd - times*d.etcd,
		client:   c.client - times*d.client,
	}
}

// busy returns the CPU time of etcd as a percentage of one core.
func (c counters) busy() float64 { return 100 * c.etcd / c.seconds }
