package watchmux

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/jagregory/locker/v2/internal/tasks"
)

const delay = 400 * time.Millisecond // the hedge delay of these tests

// cluster is the other end of the streams. Its script says what each does with a request.
type cluster struct {
	pb.UnimplementedWatchServer
	script func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error

	mu       sync.Mutex // guards what follows
	streams  int
	revision int64 // of linearizable reads
	canceled []int64
	causes   []string // of resets
}

func (c *cluster) Watch(peer pb.Watch_WatchServer) error {
	c.mu.Lock()
	n := c.streams
	c.streams++
	c.mu.Unlock()
	for {
		request, err := peer.Recv()
		if err != nil {
			return err
		}
		if cancel := request.GetCancelRequest(); cancel != nil {
			c.mu.Lock()
			c.canceled = append(c.canceled, cancel.WatchId)
			c.mu.Unlock()
		}
		if err := c.script(n, peer, request); err != nil {
			return err
		}
	}
}

func (c *cluster) Read(context.Context, string) (*pb.ResponseHeader, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &pb.ResponseHeader{Revision: c.revision}, nil
}

func (c *cluster) at(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revision = revision
}

func (c *cluster) reset(cause string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.causes = append(c.causes, cause)
}

// resets reports whether watches have ended for these reasons and no others.
func (c *cluster) resets(causes ...string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Equal(c.causes, causes)
}

// confirm confirms the creation of a watch, at a revision.
func confirm(peer pb.Watch_WatchServer, request *pb.WatchRequest, revision int64) error {
	create := request.GetCreateRequest()
	if create == nil {
		return nil
	}
	return peer.Send(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: revision}, WatchId: create.WatchId, Created: true})
}

// firstOnly confirms the first watch and is silent from then on.
func firstOnly(peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
	if create := request.GetCreateRequest(); create == nil || create.WatchId > 1 {
		return nil
	}
	return confirm(peer, request, 1)
}

// inBubble runs f with a Mux over the cluster, in a bubble where time is simulated.
func inBubble(t *testing.T, c *cluster, f func(t *testing.T, m *Mux)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		wire, server := bufconn.Listen(1<<20), grpc.NewServer()
		pb.RegisterWatchServer(server, c)
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(wire)
		}()
		conn, err := grpc.NewClient("passthrough:///cluster",
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return wire.DialContext(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(context.Background())
		var all tasks.Group
		all.Begin()
		t.Cleanup(func() {
			end()
			all.End()
			all.Join()
			_ = conn.Close()
			server.Stop()
			<-served
		})
		f(t, New(Config{
			Conn:       func() *grpc.ClientConn { return conn },
			Endpoints:  func() []string { return []string{"cluster"} },
			Tasks:      &all,
			Ctx:        ctx,
			Base:       ctx,
			Log:        slog.New(slog.DiscardHandler),
			HedgeDelay: delay,
			Read:       c.Read,
			Reset:      c.reset,
		}))
	})
}

// open opens a watch of key.
func open(t *testing.T, m *Mux, key string) *Watch {
	t.Helper()
	w, err := m.Open(t.Context(), Target{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// endsWithin reports whether w ends with its stream within d.
func endsWithin(t *testing.T, w *Watch, d time.Duration) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	for {
		switch _, err := w.Next(ctx); {
		case errors.Is(err, ErrEnded):
			return true
		case err != nil:
			return false
		}
	}
}

func TestMux_LeavesASilentStreamForOneThatAnswers(t *testing.T) {
	c := &cluster{revision: 1, script: func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		if n == 0 {
			return firstOnly(peer, request)
		}
		return confirm(peer, request, 1)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		w := open(t, m, "a")
		if !endsWithin(t, w, 3*delay) { // for a check, the wait for its answer, and that for another stream's
			t.Error("it stays on a silent stream")
		}
		again := open(t, m, "a")
		if endsWithin(t, again, 10*delay) {
			t.Error("it leaves a stream that answers")
		}
		again.Close()
		if !c.resets(noAnswer) {
			t.Errorf("it reports %q", c.causes)
		}
	})
}

func TestMux_LeavesAStreamWhoseMemberIsBehindForOneThatIsNot(t *testing.T) {
	c := &cluster{revision: 7, script: func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		if n == 0 {
			return confirm(peer, request, 1)
		}
		return confirm(peer, request, 7)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		if !endsWithin(t, open(t, m, "a"), 3*delay) {
			t.Error("it stays on the stream of a member that is behind the cluster")
		}
	})
}

func TestMux_StaysOnASilentStreamIfTheOthersAreSilentToo(t *testing.T) {
	c := &cluster{revision: 1, script: func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		if n == 0 {
			return firstOnly(peer, request)
		}
		return nil
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		w := open(t, m, "a")
		if endsWithin(t, w, 20*delay) {
			t.Error("it left its stream for one that is no better")
		}
		w.Close()
		if !c.resets() {
			t.Errorf("it reports %q", c.causes)
		}
	})
}

func TestMux_StaysOnAStreamThatDeliversThoughItIsSlow(t *testing.T) {
	c := &cluster{revision: 1}
	c.script = func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		if n > 0 {
			return confirm(peer, request, 1)
		}
		if create := request.GetCreateRequest(); create != nil && create.WatchId > 1 { // a check
			return peer.Send(&pb.WatchResponse{
				Header:  &pb.ResponseHeader{Revision: 1},
				WatchId: 1,
				Events:  []*mvccpb.Event{{Kv: &mvccpb.KeyValue{ModRevision: 1}}},
			})
		}
		return confirm(peer, request, 1)
	}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		w := open(t, m, "a")
		if endsWithin(t, w, 20*delay) {
			t.Error("it left a stream that delivers events")
		}
		w.Close()
	})
}

func TestMux_BeginsAnewWhenEtcdIsAtAnEarlierRevisionThanBefore(t *testing.T) {
	c := &cluster{revision: 9, script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		return confirm(peer, request, 9)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		w := open(t, m, "a")
		if endsWithin(t, w, 5*delay) {
			t.Fatal("it ended though nothing is wrong")
		}
		if m.Current(9).IsZero() {
			t.Error("Current does not know when the cluster was at this revision")
		}
		c.at(3) // it has come back empty, or from a backup
		if !endsWithin(t, w, 2*delay) {
			t.Error("it goes on watching at the former revisions")
		}
		if !m.Current(9).IsZero() {
			t.Error("Current still reports when the former cluster was at this revision")
		}
		if !c.resets(restore) {
			t.Errorf("it reports %q", c.causes)
		}
	})
}

func TestMux_ReportsWhyWatchesEnd(t *testing.T) {
	for cause, answer := range map[string]*pb.WatchResponse{
		compaction: {CompactRevision: 5, Canceled: true},
		refused:    {Canceled: true},
		disconnect: nil,
	} {
		t.Run(cause, func(t *testing.T) {
			c := &cluster{revision: 1}
			c.script = func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
				create := request.GetCreateRequest()
				if err := confirm(peer, request, 1); n > 0 || err != nil || create == nil || create.WatchId > 1 {
					return err
				}
				if answer == nil {
					return errors.New("broken")
				}
				answer.Header, answer.WatchId = &pb.ResponseHeader{Revision: 1}, create.WatchId
				return peer.Send(answer)
			}
			inBubble(t, c, func(t *testing.T, m *Mux) {
				w := open(t, m, "a")
				if !endsWithin(t, w, delay) {
					t.Fatal("the watch goes on")
				}
				open(t, m, "a").Close()
				if !c.resets(cause) {
					t.Errorf("it reports %q", c.causes)
				}
			})
		})
	}
}

func TestMux_ReportsARefusalOnce(t *testing.T) {
	for what, reason := range map[string]string{"of all": "no token", "of one": rpctypes.ErrGRPCPermissionDenied.Error()} {
		t.Run(what, func(t *testing.T) {
			c := &cluster{revision: 1}
			c.script = func(n int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
				if create := request.GetCreateRequest(); n == 0 && create != nil && string(create.Key) == "b" {
					return peer.Send(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: 1}, WatchId: -1, Created: true, Canceled: true, CancelReason: reason})
				}
				return confirm(peer, request, 1)
			}
			inBubble(t, c, func(t *testing.T, m *Mux) {
				first := open(t, m, "a")
				if _, err := m.Open(t.Context(), Target{Key: "b"}); !errors.Is(err, ErrEnded) {
					t.Fatal(err)
				}
				if endsWithin(t, first, delay) != (what == "of all") {
					t.Error("the wrong watches have ended")
				}
				first.Close()
				if !c.resets(refused) {
					t.Errorf("it reports %q", c.causes)
				}
			})
		})
	}
}

func TestMux_KeepsAWatchForAWhile(t *testing.T) {
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		return confirm(peer, request, 0)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		w := open(t, m, "a")
		m.Keep(w.Key, w)
		if !m.Keeps("a") || m.Keeps("b") {
			t.Error("it does not keep the watch that it was given")
		}
		time.Sleep(watchIdle - 1)
		if m.Again("a", 0) != w || m.Again("a", 0) != nil {
			t.Error("it does not give the watch back exactly once")
		}
		m.Keep(w.Key, w)
		time.Sleep(watchIdle)
		synctest.Wait()
		if m.Keeps("a") || m.Again("a", 0) != nil {
			t.Error("it keeps the watch too long")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !slices.Contains(c.canceled, 1) {
			t.Errorf("etcd was asked to cancel %v", c.canceled)
		}
	})
}

func TestMux_NotesThatAKeyWasWaitedForWithoutAWatch(t *testing.T) {
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		return confirm(peer, request, 0)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		m.Keep("a", nil)
		if !m.Keeps("a") || m.Again("a", 0) != nil || m.Keeps("a") {
			t.Error("the note is not there exactly once")
		}
		m.Keep("a", nil)
		time.Sleep(watchIdle / 2)
		m.Keep("a", nil)
		time.Sleep(watchIdle - 1)
		if !m.Keeps("a") {
			t.Error("the second note has expired with the first")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if m.Keeps("a") {
			t.Error("the note has not expired")
		}
	})
}

func TestStream_OpensAWatchAfterARevision(t *testing.T) {
	var asked int64
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		if create := request.GetCreateRequest(); create != nil {
			asked = create.StartRevision
		}
		return confirm(peer, request, 0)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		for since, want := range map[int64]int64{0: 0, 7: 7} {
			w, err := m.Open(t.Context(), Target{Key: "a", Since: since})
			if err != nil {
				t.Fatal(err)
			}
			if w.Close(); asked != want {
				t.Errorf("since %d it asks for changes from %d on", since, asked)
			}
		}
	})
}
