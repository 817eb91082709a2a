package locker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// stream is one Watch stream of etcd with all its watches. When it ends, so do they,
// and whoever wants to go on opens another. That, and that a watch costs neither a
// goroutine nor a buffer of its own, is what it does not share with the watcher of
// etcd's client.
type stream struct {
	client *Client
	ctx    context.Context
	cancel context.CancelFunc

	post chan struct{} // has an item when the outbox has

	mu       sync.Mutex         // guards what follows
	watches  map[int64]*watch   // that etcd has confirmed
	creating []*watch           // that it has yet to confirm, which it does in order
	outbox   []*pb.WatchRequest // to be sent
	ended    bool
}

func newStream(c *Client) *stream {
	s := &stream{client: c, watches: make(map[int64]*watch), post: make(chan struct{}, 1)}
	// A member without a leader would stay silent: it has to refuse instead.
	s.ctx, s.cancel = context.WithCancel(clientv3.WithRequireLeader(c.base))
	c.tasks.run(s.run)
	return s
}

// run is the stream's goroutine: it receives until the stream ends.
func (s *stream) run() {
	defer s.end()
	// Like the requests of etcd's client, it waits for a connection.
	wire, err := pb.NewWatchClient(s.client.etcd.ActiveConnection()).Watch(s.ctx, callOptions...)
	if err != nil {
		return
	}
	s.client.tasks.run(func() { s.sendTo(wire) })
	for {
		answer, err := wire.Recv()
		if err != nil || !tells(answer) {
			return
		}
		s.dispatch(answer)
	}
}

// sendTo sends what is in the outbox, until the stream ends.
func (s *stream) sendTo(wire pb.Watch_WatchClient) {
	for {
		select {
		case <-s.post:
		case <-s.ctx.Done():
			return
		}
		s.mu.Lock()
		requests := s.outbox
		s.outbox = nil
		s.mu.Unlock()
		for _, request := range requests {
			_ = wire.Send(request) // Recv says why it failed
		}
	}
}

// end ends all watches.
func (s *stream) end() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, w := range s.creating {
		w.end(errWatchEnded)
	}
	for _, w := range s.watches {
		w.end(errWatchEnded)
	}
	s.creating, s.watches = nil, nil
}

// alive reports whether watches can be opened.
func (s *stream) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ended
}

// busy reports whether there are watches.
func (s *stream) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.watches)+len(s.creating) > 0
}

// watch opens a watch.
func (s *stream) watch(what watched) *watch {
	w := &watch{watched: what, stream: s, news: make(chan struct{}, 1)}
	request := &pb.WatchCreateRequest{Key: []byte(what.key)}
	if what.below {
		request.RangeEnd = rangeEnd(what.key)
	}
	if what.deletions {
		request.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		w.err = errWatchEnded
		return w
	}
	w.creation = &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}
	s.creating = append(s.creating, w)
	s.send(w.creation)
	return w
}

// progress asks etcd to tell all watches which revision they have reached.
func (s *stream) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
}

// close closes a watch. Of one that etcd has yet to confirm the ID is not known: it is
// taken back, or else cancelled when it is confirmed.
func (s *stream) close(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || w.closed {
		return
	}
	w.closed = true
	if i := slices.Index(s.outbox, w.creation); i >= 0 {
		s.outbox = slices.Delete(s.outbox, i, i+1)
		s.creating = slices.DeleteFunc(s.creating, func(other *watch) bool { return other == w })
	} else if s.watches[w.id] == w {
		delete(s.watches, w.id)
		s.sendCancel(w.id)
	}
}

// sendCancel posts the end of a watch. The caller has the mutex.
func (s *stream) sendCancel(id int64) {
	s.send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}})
}

// send posts a request. The caller has the mutex.
func (s *stream) send(request *pb.WatchRequest) {
	s.outbox = append(s.outbox, request)
	select {
	case s.post <- struct{}{}:
	default:
	}
}

// everyWatch is the ID of an answer to a request for progress.
const everyWatch = -1

func (s *stream) dispatch(answer *pb.WatchResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch w := s.watches[answer.WatchId]; {
	case answer.Created:
		s.confirm(answer)
	case answer.WatchId == everyWatch:
		for _, w := range s.watches {
			w.add(answer)
		}
	case w == nil: // closed meanwhile
	case answer.Canceled:
		delete(s.watches, w.id)
		w.closed = true
		w.end(fmt.Errorf("%w: %s", errWatchEnded, answer.CancelReason))
	default:
		w.add(answer)
	}
}

// confirm takes in that etcd has opened the oldest watch that it had yet to confirm,
// or has refused to, in which case the answer lacks its ID. The caller has the mutex.
func (s *stream) confirm(answer *pb.WatchResponse) {
	if len(s.creating) == 0 {
		return
	}
	w := s.creating[0]
	s.creating = s.creating[1:]
	switch {
	case answer.Canceled:
		w.closed = true
		w.end(fmt.Errorf("%w: %s", errWatchEnded, answer.CancelReason))
		if answer.CancelReason != rpctypes.ErrGRPCPermissionDenied.Error() {
			s.cancel() // the next stream has a new token of authentication
		}
	case w.closed:
		s.sendCancel(answer.WatchId)
	default:
		w.id, w.creation = answer.WatchId, nil
		s.watches[w.id] = w
		w.add(answer)
	}
}

// errWatchEnded is what a watch ends with that is worth opening again.
var errWatchEnded = errors.New("watch ended")

// watched is what a watch is for.
type watched struct {
	key       string
	below     bool // all keys that begin with key
	deletions bool // and nothing else
}

// watch is one watch on a stream. It must be closed or kept.
type watch struct {
	watched
	stream *stream
	news   chan struct{} // has an item when there is something to read

	id       int64            // as etcd has chosen it; this and what follows is guarded by the stream's mutex
	creation *pb.WatchRequest // until it is confirmed
	closed   bool

	mu      sync.Mutex          // guards what follows
	answers []*pb.WatchResponse // yet to be read, the oldest first
	err     error               // after which no answer comes
}

func (w *watch) add(answer *pb.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, answer)
	w.notify()
}

func (w *watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	w.notify()
}

func (w *watch) notify() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// next returns the next answer. It returns an error at the end of the watch, or of ctx.
func (w *watch) next(ctx context.Context) (*pb.WatchResponse, error) {
	for {
		w.mu.Lock()
		var answer *pb.WatchResponse
		if len(w.answers) > 0 {
			answer = w.answers[0]
			if w.answers = w.answers[1:]; len(w.answers) == 0 {
				w.answers = nil
			}
		}
		err := w.err
		w.mu.Unlock()
		if answer != nil {
			return answer, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-w.news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// close ends the watch, if it is one.
func (w *watch) close() {
	if w != nil {
		w.stream.close(w)
	}
}
