package locker

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
	t.Cleanup(m.end)
	return m
}

// confirms has all watches confirmed that were asked for, and returns how many.
func (m member) confirms() (n int) {
	for _, request := range m.takeOutbox() {
		if create := request.GetCreateRequest(); create != nil {
			n++
			m.dispatch(&pb.WatchResponse{Header: new(pb.ResponseHeader), WatchId: create.WatchId, Created: true})
		}
	}
	return n
}

// opens returns a watch that is confirmed.
func (m member) opens(what watched) *watch {
	m.Helper()
	w := m.watch(what)
	m.confirms()
	if answer := m.reads(w); answer == nil || !answer.Created {
		m.Fatalf("the first answer is %v", answer)
	}
	return w
}

// reads returns the next answer that a watch has, nil if there is none.
func (m member) reads(w *watch) *pb.WatchResponse {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	answer, _ := w.next(ended)
	return answer
}

// reached answers a request for progress.
func (m member) reached(revision int64) {
	m.dispatch(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: revision}, WatchId: everyWatch})
}

func TestProgress_IsToldToThoseThatNeedItOnly(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	waiter, loop := m.opens(watched{key: "a", deletions: true}), m.opens(watched{key: "b", below: true})
	cache := m.opens(watched{key: "b", below: true, progress: true})
	<-waiter.news // has been read
	<-loop.news
	m.reached(7)
	for _, w := range []*watch{waiter, loop} {
		if len(w.news) > 0 {
			t.Errorf("the watch of %s was woken for %v", w.key, m.reads(w))
		}
	}
	if answer := m.reads(cache); answer == nil || answer.Header.Revision != 7 {
		t.Errorf("the watch that needs it was told %v", answer)
	}
	cache.close()
	m.progress()
	for _, request := range m.takeOutbox() {
		if request.GetProgressRequest() != nil {
			t.Error("nobody needs it, but it is asked for")
		}
	}
}

// Members of etcd 3.4.24 and 3.5.7 and before do not have progress wait for events. They
// answer the request that comes before the first watch, which others do not.
func TestProgress_IsBelievedWithTheNextWhereItMayComeBeforeEvents(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]bool{"before": true, "in turn": false} {
		m := newMember(t)
		if early {
			m.reached(3)
		}
		cache := m.opens(watched{key: "a", progress: true})
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
			t.Errorf("%s: with the second answer it was not told %d", name, want)
		}
	}
}

func TestProgress_ShowsThatTheMemberAnswersWhereItIsAskedForAnyway(t *testing.T) {
	t.Parallel()
	m := newMember(t)
	cache := m.opens(watched{key: "a", progress: true})
	first := m.probe(cache.watched)
	if n := m.confirms(); n != 1 {
		t.Errorf("%d watches were opened before any request for progress was answered", n)
	}
	first.close()
	m.reached(5)
	second := m.probe(cache.watched)
	if n := m.confirms(); n != 0 {
		t.Errorf("%d watches were opened though progress is asked for and answered", n)
	}
	m.reached(6)
	if answer := m.reads(second); answer.GetHeader().GetRevision() != 6 {
		t.Errorf("the answer was %v", answer)
	}
	second.close()
	cache.close()
	m.probe(cache.watched).close()
	waiter := m.opens(watched{key: "b", deletions: true})
	m.probe(waiter.watched)
	if n := m.confirms(); n != 1 {
		t.Errorf("%d watches were opened to see whether the member answers", n)
	}
}

func TestStream_ClosesManyWatchesInNoTime(t *testing.T) {
	t.Parallel()
	const many = 100_000
	for name, confirmed := range map[string]bool{"that wait to be sent": false, "that are open": true} {
		m := newMember(t)
		watches := make([]*watch, many)
		for i := range watches {
			watches[i] = m.watch(watched{key: "a"})
		}
		if confirmed {
			m.confirms()
		}
		began := time.Now()
		for i := range watches {
			watches[(i+many/2)%many].close() // from the middle on
		}
		// A scan of all that are there takes ten times as long, and more.
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("to close %d watches %s took %v", many, name, took)
		}
		if _, any := m.sample(); any {
			t.Errorf("there are watches left of those %s", name)
		}
		if confirmed {
			continue
		}
		if requests := m.takeOutbox(); len(requests) > 0 {
			t.Errorf("%d requests are sent for nothing", len(requests))
		}
	}
}
