package watchmux

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
)

// stream is one Watch stream of etcd with all its watches. When it ends, they end, and
// callers that want to go on open others. In that it differs from the watcher of etcd's
// client, and in that a watch costs neither a goroutine nor a buffer of its own.
type stream struct {
	mux    *Mux
	ctx    context.Context
	cancel context.CancelFunc

	post chan struct{} // has an item when the outbox has

	mu        sync.Mutex       // guards what follows
	peer      string           // the address of the member at the other end, once it is known
	outbox    list.List        // of posted, to be sent
	creating  []*Watch         // sent, and yet to be confirmed by etcd, which it does in order
	watches   map[int64]*Watch // confirmed, by ID
	following map[*Watch]bool  // of those confirmed, the ones that need progress
	probes    map[*Watch]bool  // waiting for the next answer to a request for progress
	last      int64            // ID that was given to a watch
	heard     heard
	used      bool   // it is, or was, that of the Mux, and not on trial
	cause     string // why it is about to end
	ended     bool

	// What is known of how the member answers requests for progress.
	confirms bool              // it has opened a watch, or refused to
	answers  bool              // it does answer them
	early    bool              // its answers may come before events at that revision or below it
	held     *pb.WatchResponse // the last of those
}

// heard is what has been received from the member at the other end.
type heard struct {
	cluster  uint64
	revision int64 // the highest
	events   int   // number of answers that had events
}

// posted is a request to be sent.
type posted struct {
	request *pb.WatchRequest
	watch   *Watch // that it creates; nil if it creates none
}

// newStream opens a stream, if possible to none of the members at the addresses in avoid.
func newStream(m *Mux, avoid ...string) *stream {
	// A member without a leader would stay silent; with this it refuses.
	s := unconnected(context.WithCancel(clientv3.WithRequireLeader(m.Base)))
	s.mux = m
	// Only etcd 3.4.24, 3.5.7 and earlier answer this while there is no watch. There, the
	// answers do not wait for the events before them (etcd issue 15220).
	s.sendProgress()
	m.Tasks.Run(func() { s.run(avoid) })
	return s
}

// unconnected returns a stream that has yet to be connected.
func unconnected(ctx context.Context, cancel context.CancelFunc) *stream {
	return &stream{
		ctx:       ctx,
		cancel:    cancel,
		post:      make(chan struct{}, 1),
		watches:   make(map[int64]*Watch),
		following: make(map[*Watch]bool),
		probes:    make(map[*Watch]bool),
	}
}

// run is the stream's goroutine: it receives until the stream ends.
func (s *stream) run(avoid []string) {
	defer s.end(disconnect)
	wire, cancel, err := s.connect(avoid)
	if err != nil {
		return
	}
	defer cancel()
	s.mux.Tasks.Run(func() { s.sendTo(wire) })
	for {
		answer, err := wire.Recv()
		if err != nil || !wellFormed(answer) {
			return
		}
		s.dispatch(answer)
	}
}

// connect opens the stream to the member that the balancer chooses, and if that is one to
// avoid, to the next. It does so twice for each member, because other requests move the
// balancer on as well; after that any member will do.
func (s *stream) connect(avoid []string) (pb.Watch_WatchClient, context.CancelFunc, error) {
	for turns := 2 * len(s.mux.Endpoints()); ; turns-- {
		ctx, cancel := context.WithCancel(s.ctx)
		// Like the requests of etcd's client, it waits for a connection.
		wire, err := pb.NewWatchClient(s.mux.Conn()).Watch(ctx, grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(math.MaxInt32))
		if err != nil {
			cancel()
			return nil, nil, err
		}
		member := ""
		if p, ok := peer.FromContext(wire.Context()); ok && p.Addr != nil {
			member = p.Addr.String()
		}
		if turns > 0 && slices.Contains(avoid, member) {
			cancel()
			continue
		}
		s.mu.Lock()
		s.peer = member
		s.mu.Unlock()
		return wire, cancel, nil
	}
}

// sendTo sends what is put into the outbox, until the stream ends.
func (s *stream) sendTo(wire pb.Watch_WatchClient) {
	for {
		select {
		case <-s.post:
		case <-s.ctx.Done():
			return
		}
		for _, request := range s.takeOutbox() {
			_ = wire.Send(request) // Recv reports why it failed
		}
	}
}

// takeOutbox empties the outbox. etcd confirms the watches in the order in which they were
// sent.
func (s *stream) takeOutbox() (requests []*pb.WatchRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for item := s.outbox.Front(); item != nil; item = item.Next() {
		p := item.Value.(posted)
		requests = append(requests, p.request)
		if p.watch != nil {
			p.watch.posted = nil
			s.creating = append(s.creating, p.watch)
		}
	}
	s.outbox.Init()
	return requests
}

// use notes that the stream carries the watches of the Mux from now on.
func (s *stream) use() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used = true
}

// end ends the stream and all its watches. Only the first call has an effect.
func (s *stream) end(cause string) {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	if s.cause != "" || len(s.watches) > 0 || slices.ContainsFunc(s.creating, func(w *Watch) bool { return !w.closed }) {
		s.reset(cmp.Or(s.cause, cause))
	}
	for item := s.outbox.Front(); item != nil; item = item.Next() {
		if w := item.Value.(posted).watch; w != nil {
			w.end(ErrEnded)
		}
	}
	for _, w := range s.creating {
		w.end(ErrEnded)
	}
	for _, w := range s.watches {
		w.end(ErrEnded)
	}
	for w := range s.probes {
		w.end(ErrEnded)
	}
	s.outbox.Init()
	s.creating, s.watches, s.following, s.probes = nil, nil, nil, nil
}

// reset reports that watches have ended, unless everything does. The caller holds the mutex.
func (s *stream) reset(cause string) {
	if s.used && s.mux.Ctx.Err() == nil {
		s.mux.Reset(cause)
	}
}

// alive reports whether watches can be opened on the stream.
func (s *stream) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ended
}

// sample returns the target of one of the watches, preferably of one that needs progress,
// and false if there is no watch.
func (s *stream) sample() (Target, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.following {
		return w.Target, true
	}
	for _, w := range s.watches {
		return w.Target, true
	}
	for _, w := range s.creating {
		if !w.closed {
			return w.Target, true
		}
	}
	for item := s.outbox.Front(); item != nil; item = item.Next() {
		if w := item.Value.(posted).watch; w != nil {
			return w.Target, true
		}
	}
	return Target{}, false
}

// member returns the address of the member at the other end, "" if it is not known.
func (s *stream) member() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peer
}

// hears returns what has been received so far.
func (s *stream) hears() heard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heard
}

// watch opens a watch whose answers are signaled on ready. It does not wait for etcd to
// confirm it.
func (s *stream) watch(what Target, ready chan struct{}) *Watch {
	w := &Watch{Target: what, stream: s, ready: ready}
	request := &pb.WatchCreateRequest{Key: []byte(what.Key)}
	if what.Since != 0 {
		request.StartRevision = what.Since
	}
	if what.Below {
		request.RangeEnd = []byte(clientv3.GetPrefixRangeEnd(what.Key))
	}
	if what.Deletions {
		request.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		w.err = ErrEnded
		return w
	}
	// The ID is chosen here: when etcd 3.4 refuses a watch without an ID, it sends no more
	// events to the first one.
	s.last++
	request.WatchId = s.last
	w.posted = s.send(posted{&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}, w})
	return w
}

// probe returns a watch whose first answer shows how far the member is. That is an answer
// to a request for progress, if some watch needs progress anyway and the member is known to
// answer; otherwise it is the confirmation of a watch.
func (s *stream) probe(what Target) *Watch {
	what.Progress, what.Since = false, 0
	s.progress()
	s.mu.Lock()
	if s.ended || !s.answers || len(s.following) == 0 {
		s.mu.Unlock()
		return s.watch(what, make(chan struct{}, 1))
	}
	defer s.mu.Unlock()
	w := &Watch{Target: what, stream: s, id: everyWatch, ready: make(chan struct{}, 1)}
	s.probes[w] = true
	return w
}

// progress asks etcd to report the revision reached to the watches that need it.
func (s *stream) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.following) > 0 {
		s.sendProgress()
	}
}

// sendProgress puts a request for progress into the outbox. The caller holds the mutex.
func (s *stream) sendProgress() {
	s.send(posted{request: &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}})
}

// close closes a watch. If etcd has yet to confirm it, its ID is not known to be valid:
// then the request is taken back, or, if it was sent, the watch is cancelled when it is
// confirmed.
func (s *stream) close(w *Watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || w.closed {
		return
	}
	w.closed = true
	delete(s.following, w)
	delete(s.probes, w)
	if w.posted != nil {
		s.outbox.Remove(w.posted)
		w.posted = nil
	} else if s.watches[w.id] == w {
		delete(s.watches, w.id)
		s.sendCancel(w.id)
	}
}

// sendCancel puts the cancellation of a watch into the outbox. The caller holds the mutex.
func (s *stream) sendCancel(id int64) {
	s.send(posted{request: &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}})
}

// send puts a request into the outbox. The caller holds the mutex.
func (s *stream) send(p posted) *list.Element {
	item := s.outbox.PushBack(p)
	select {
	case s.post <- struct{}{}:
	default:
	}
	return item
}

// everyWatch is the watch ID in an answer to a request for progress.
const everyWatch = -1

// dispatch hands an answer to the watches that it is for.
func (s *stream) dispatch(answer *pb.WatchResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.heard.cluster = answer.Header.ClusterId
	s.heard.revision = max(s.heard.revision, answer.Header.Revision)
	if len(answer.Events) > 0 {
		s.heard.events++
	}
	switch w := s.watches[answer.WatchId]; {
	case answer.Created:
		s.confirm(answer)
	case answer.WatchId == everyWatch:
		s.tellProgress(answer)
	case w == nil: // closed meanwhile
	case answer.Canceled:
		s.drop(w, answer)
		if answer.CompactRevision != 0 {
			s.reset(compaction)
		} else {
			s.reset(refused)
		}
	default:
		w.add(answer)
	}
}

// tellProgress hands on an answer about progress. Where such an answer may come before the
// events that belong before it, the watches get the one before: by now those events have
// come. The caller holds the mutex.
func (s *stream) tellProgress(answer *pb.WatchResponse) {
	if !s.confirms {
		s.early = true
		return
	}
	s.answers = true
	for w := range s.probes {
		w.add(answer)
	}
	clear(s.probes)
	if s.early {
		answer, s.held = s.held, answer
	}
	if answer == nil {
		return
	}
	for w := range s.following {
		w.add(answer)
	}
}

// confirm takes in that etcd has opened the oldest watch that it had yet to confirm, or
// that it has refused to; then the answer has no ID. The caller holds the mutex.
func (s *stream) confirm(answer *pb.WatchResponse) {
	s.confirms = true
	if len(s.creating) == 0 {
		return
	}
	w := s.creating[0]
	s.creating = s.creating[1:]
	switch {
	case answer.Canceled:
		s.drop(w, answer)
		if answer.CancelReason != rpctypes.ErrGRPCPermissionDenied.Error() {
			s.cause = refused
			s.cancel() // the next stream has a new authentication token
		} else {
			s.reset(refused)
		}
	case w.closed:
		s.sendCancel(answer.WatchId)
	default:
		w.id = answer.WatchId
		s.watches[w.id] = w
		if w.Progress {
			s.following[w] = true
		}
		w.add(answer)
	}
}

// drop ends a watch that etcd has ended. The caller holds the mutex.
func (s *stream) drop(w *Watch, answer *pb.WatchResponse) {
	if s.watches[w.id] == w {
		delete(s.watches, w.id)
	}
	delete(s.following, w)
	w.closed = true
	w.end(fmt.Errorf("%w: %s", ErrEnded, answer.CancelReason))
}

// wellFormed reports whether an answer has the parts that etcd's answers always have.
func wellFormed(answer *pb.WatchResponse) bool {
	return answer.Header != nil && !slices.ContainsFunc(answer.Events, func(ev *mvccpb.Event) bool { return ev.Kv == nil })
}
