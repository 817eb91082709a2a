package watchmux

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// member is the other end of a stream that is not connected.
type member struct {
	*testing.T
	*stream
}

func newMember(t *testing.T) member {
	m := member{t, unconnected(context.WithCancel(t.Context()))}
	t.Cleanup(func() { m.end(unused) })
	return m
}

// confirms confirms all watches that were asked for, and returns how many.
func (m member) confirms() (n int) {
	for _, request := range m.takeOutbox() {
		if create := request.GetCreateRequest(); create != nil {
			n++
			m.dispatch(&pb.WatchResponse{Header: new(pb.ResponseHeader), WatchId: create.WatchId, Created: true})
		}
	}
	return n
}

// opens returns a confirmed watch.
func (m member) opens(what Target) *Watch {
	m.Helper()
	w := m.watch(what, make(chan struct{}, 1))
	m.confirms()
	if answer := m.reads(w); answer == nil || !answer.Created {
		m.Fatalf("the first answer is %v", answer)
	}
	return w
}

// reads returns the next answer to a watch, or nil.
func (m member) reads(w *Watch) *pb.WatchResponse {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	answer, _ := w.Next(ended)
	return answer
}

// reached reports progress up to a revision.
func (m member) reached(revision int64) {
	m.dispatch(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: revision}, WatchId: everyWatch})
}

func TestProgress_IsReportedToThoseThatNeedItOnly(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	waiter, loop := m.opens(Target{Key: "a", Deletions: true}), m.opens(Target{Key: "b", Below: true})
	cache := m.opens(Target{Key: "b", Below: true, Progress: true})
	<-waiter.ready // has been read
	<-loop.ready
	m.reached(7)
	for _, w := range []*Watch{waiter, loop} {
		if len(w.ready) > 0 {
			t.Errorf("the watch of %s was woken for %v", w.Key, m.reads(w))
		}
	}
	if answer := m.reads(cache); answer == nil || answer.Header.Revision != 7 {
		t.Errorf("the watch that needs it got %v", answer)
	}
	cache.Close()
	m.progress()
	for _, request := range m.takeOutbox() {
		if request.GetProgressRequest() != nil {
			t.Error("progress is asked for, though nobody needs it")
		}
	}
}

// Members of etcd 3.4.24 and 3.5.7 and before may report progress ahead of events. They
// answer a request that comes before the first watch, which others do not.
func TestProgress_IsBelievedWithTheNextWhereItMayComeBeforeEvents(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]bool{"before": true, "in turn": false} {
		m := newMember(t)
		if early {
			m.reached(3)
		}
		cache := m.opens(Target{Key: "a", Progress: true})
		m.reached(5)
		if answer := m.reads(cache); early != (answer == nil) {
			t.Errorf("%s: the first answer led to %v", name, answer)
		}
		m.dispatch(&pb.WatchResponse{
			Header:  &pb.ResponseHeader{Revision: 5},
			WatchId: cache.id,
			Events:  []*mvccpb.Event{{Kv: &mvccpb.KeyValue{ModRevision: 5}}},
		})
		if answer := m.reads(cache); len(answer.GetEvents()) == 0 {
			t.Errorf("%s: the events came as %v", name, answer)
		}
		m.reached(9)
		if want := map[bool]int64{true: 5, false: 9}[early]; m.reads(cache).GetHeader().GetRevision() != want {
			t.Errorf("%s: the second answer did not report %d", name, want)
		}
	}
}

func TestProgress_ShowsThatTheMemberAnswersWhereItIsAskedForAnyway(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	cache := m.opens(Target{Key: "a", Progress: true})
	first := m.probe(cache.Target)
	if n := m.confirms(); n != 1 {
		t.Errorf("%d watches were opened before any request for progress was answered", n)
	}
	first.Close()
	m.reached(5)
	second := m.probe(cache.Target)
	if n := m.confirms(); n != 0 {
		t.Errorf("%d watches were opened though progress is asked for and answered", n)
	}
	m.reached(6)
	if answer := m.reads(second); answer.GetHeader().GetRevision() != 6 {
		t.Errorf("the answer was %v", answer)
	}
	second.Close()
	cache.Close()
	m.probe(cache.Target).Close()
	waiter := m.opens(Target{Key: "b", Deletions: true})
	m.probe(waiter.Target)
	if n := m.confirms(); n != 1 {
		t.Errorf("%d watches were opened to see whether the member answers", n)
	}
}

func TestStream_ClosesManyWatchesInNoTime(t *testing.T) {
	t.Parallel()
	const many = 100_000
	for name, confirmed := range map[string]bool{"that wait to be sent": false, "that are open": true} {
		m := newMember(t)
		watches := make([]*Watch, many)
		for i := range watches {
			watches[i] = m.watch(Target{Key: "a"}, make(chan struct{}, 1))
		}
		if confirmed {
			m.confirms()
		}
		began := time.Now()
		for i := range watches {
			watches[(i+many/2)%many].Close() // from the middle on
		}
		// Scanning all watches for each would take more than ten times as long.
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("closing %d watches %s took %v", many, name, took)
		}
		if _, left := m.sample(); left {
			t.Errorf("there are watches left of those %s", name)
		}
		if confirmed {
			continue
		}
		if requests := m.takeOutbox(); len(requests) > 0 {
			t.Errorf("%d requests are sent needlessly", len(requests))
		}
	}
}
