package watchmux

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// deleted is the answer to a watch that a key was deleted at a revision.
func deleted(id, revision int64) *pb.WatchResponse {
	return &pb.WatchResponse{
		Header:  &pb.ResponseHeader{Revision: revision},
		WatchId: id,
		Events:  []*mvccpb.Event{{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{ModRevision: revision}}},
	}
}

// opensAll returns confirmed watches that one goroutine uses.
func (m member) opensAll(keys ...string) (watches []*Watch) {
	m.Helper()
	ready := make(chan struct{}, 1)
	for _, key := range keys {
		watches = append(watches, m.watch(Target{Key: key}, ready))
	}
	m.confirms()
	for _, w := range watches {
		if answer := m.reads(w); answer == nil || !answer.Created {
			m.Fatalf("the first answer is %v", answer)
		}
	}
	return watches
}

// next is what NextOf has returned.
type next struct {
	answer *pb.WatchResponse
	err    error
}

// awaits calls NextOf in a goroutine, and returns when that waits, or has returned. It must be called in a bubble.
func awaits(ctx context.Context, watches []*Watch) <-chan next {
	got := make(chan next, 1)
	go func() {
		answer, err := NextOf(ctx, watches)
		got <- next{answer, err}
	}()
	synctest.Wait()
	return got
}

func TestNextOf_ReturnsTheAnswerOfWhicheverWatchHasOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMember(t)
		watches := m.opensAll("a", "b", "c")
		for i := range 6 {
			w := watches[i%3]
			got, revision := awaits(t.Context(), watches), int64(7+i)
			if len(got) > 0 {
				t.Fatalf("it returned %v too early", <-got)
			}
			m.dispatch(deleted(w.id, revision))
			if next := <-got; next.err != nil || next.answer.WatchId != w.id || w.Reached != revision {
				t.Errorf("it returned %v, and the watch of %s has reached %d", next, w.Key, w.Reached)
			}
		}
	})
}

func TestNextOf_MissesNoAnswerOfThoseThatComeTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMember(t)
		watches := m.opensAll("a", "b")
		for _, id := range []int64{watches[1].id, watches[0].id, watches[1].id} { // that is one signal
			m.dispatch(deleted(id, 7))
		}
		for range 3 {
			if got := awaits(t.Context(), watches); len(got) == 0 {
				t.Fatal("an answer was missed")
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		got := awaits(ctx, watches)
		if cancel(); !errors.Is((<-got).err, context.Canceled) {
			t.Error("it does not end with its context")
		}
	})
}

func TestNextOf_ReturnsWhenOneOfTheWatchesEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMember(t)
		watches := m.opensAll("a", "b")
		got := awaits(t.Context(), watches)
		m.dispatch(&pb.WatchResponse{Header: new(pb.ResponseHeader), WatchId: watches[1].id, Canceled: true})
		if next := <-got; !errors.Is(next.err, ErrEnded) {
			t.Errorf("it returned %v", next)
		}
		m.end(disconnect)
		if _, err := NextOf(t.Context(), watches); !errors.Is(err, ErrEnded) {
			t.Errorf("after the end of the stream it returned %v", err)
		}
	})
}

// The answer to the first comes while the confirmation of the second is awaited, which takes the signal for both.
func TestOpenAll_KeepsAnswersThatComeWhileTheOthersAreOpened(t *testing.T) {
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		if create := request.GetCreateRequest(); create != nil && create.WatchId == 2 {
			for _, revision := range []int64{8, 9} {
				if err := peer.Send(deleted(1, revision)); err != nil {
					return err
				}
			}
		}
		return confirm(peer, request, 7)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		watches, err := m.OpenAll(t.Context(), []Target{{Key: "a"}, {Key: "b"}, {Key: "c"}})
		if err != nil || len(watches) != 3 {
			t.Fatalf("%v, %v", watches, err)
		}
		defer CloseAll(watches)
		for i, revision := range []int64{8, 9} {
			got := awaits(t.Context(), watches)
			if len(got) == 0 {
				t.Fatal("an answer was missed")
			}
			if next := <-got; next.err != nil || next.answer.WatchId != 1 || watches[0].Reached != revision {
				t.Errorf("answer %d is %v, and the watch has reached %d", i, next, watches[0].Reached)
			}
		}
		if w := watches[1]; w.Key != "b" || w.Opened != 7 || w.Reached != 7 {
			t.Errorf("the watch of %s was opened at %d, and has reached %d", w.Key, w.Opened, w.Reached)
		}
	})
}

func TestOpenAll_ClosesAllIfOneIsRefused(t *testing.T) {
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		create := request.GetCreateRequest()
		if create == nil || string(create.Key) != "c" {
			return confirm(peer, request, 7)
		}
		return peer.Send(&pb.WatchResponse{
			Header: new(pb.ResponseHeader), WatchId: everyWatch, Created: true, Canceled: true,
			CancelReason: rpctypes.ErrGRPCPermissionDenied.Error(),
		})
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		watches, err := m.OpenAll(t.Context(), []Target{{Key: "a"}, {Key: "b"}, {Key: "c"}, {Key: "d"}})
		if watches != nil || !errors.Is(err, ErrEnded) {
			t.Errorf("%v, %v", watches, err)
		}
		synctest.Wait()
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.canceled) != 3 {
			t.Errorf("etcd was asked to cancel %v, want three", c.canceled)
		}
	})
}

func TestMux_LeavesAWatchThatHasGoneBeyondTheRevision(t *testing.T) {
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		return confirm(peer, request, 5)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		w := open(t, m, "a")
		again := func(revision int64, want *Watch) {
			t.Helper()
			if m.Keep("a", w); m.Again("a", revision) != want || m.Keeps("a") == (want != nil) {
				t.Errorf("at %d it returned another; it is kept: %v", revision, m.Keeps("a"))
			}
			if want == nil && m.Again("a", w.Reached) != w {
				t.Error("it is not left where it was")
			}
		}
		again(4, nil) // events at 5 may have come before it was opened
		again(5, w)
		w.stream.dispatch(deleted(w.id, 8))
		again(5, w) // the event can still be read
		if _, err := w.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		again(7, nil)
		again(8, w)
		m.Keep("a", w)
		if m.Keep("a", nil); m.Again("a", 8) != w {
			t.Error("a note has taken the place of a watch")
		}
		if m.Keep("a", nil); m.Again("a", 0) != nil || m.Keeps("a") {
			t.Error("a note without a watch is not taken at any revision")
		}
	})
}

func TestKeep_OfSeveralWatchesOfAKeyAtOnceKeepsOneAndClosesTheOthers(t *testing.T) {
	c := &cluster{script: func(_ int, peer pb.Watch_WatchServer, request *pb.WatchRequest) error {
		return confirm(peer, request, 0)
	}}
	inBubble(t, c, func(t *testing.T, m *Mux) {
		const keys, n = 300, 8
		closed := func() (times map[int64]int) { // by ID
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			times = make(map[int64]int)
			for _, id := range c.canceled {
				times[id]++
			}
			return times
		}
		var watches []*Watch
		for i := range keys {
			key, start := fmt.Sprint(i), make(chan struct{})
			keep := func(w *Watch) {
				go func() {
					<-start
					m.Keep(key, w)
				}()
			}
			for range n {
				w := open(t, m, key)
				watches = append(watches, w)
				keep(w)
				keep(nil) // a note
			}
			close(start)
			if got := len(closed()); got != (i+1)*(n-1) {
				t.Fatalf("of %d watches of %d keys, %d are closed", len(watches), i+1, got)
			}
		}
		time.Sleep(watchIdle)
		times := closed()
		for _, w := range watches {
			if times[w.id] != 1 {
				t.Errorf("etcd was asked %d times to cancel a watch", times[w.id])
			}
		}
	})
}
