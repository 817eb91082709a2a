package fakeetcd

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stream is a Watch stream with its watches. Its fields are guarded by the server's mutex.
type stream struct {
	watches map[int64]*pb.WatchCreateRequest
	next    int64 // ID
	answers []*pb.WatchResponse
	more    chan struct{} // has an item when answers has
}

// everyWatch is the ID of an answer to a request for progress.
const everyWatch = -1

// Watch implements pb.WatchServer.
func (s *Server) Watch(wire pb.Watch_WatchServer) error {
	st := &stream{watches: make(map[int64]*pb.WatchCreateRequest), more: make(chan struct{}, 1)}
	s.mu.Lock()
	s.streams[st] = true
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(wire.Context())
	var sender sync.WaitGroup
	sender.Go(func() { s.sendTo(ctx, wire, st) })
	defer sender.Wait()
	defer cancel()
	defer func() {
		s.mu.Lock()
		delete(s.streams, st)
		s.mu.Unlock()
	}()
	for {
		r, err := wire.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.take(ctx, st, r); err != nil {
			return err
		}
	}
}

// take takes in a request. Only that for a watch has a fate.
func (s *Server) take(ctx context.Context, st *stream, r *pb.WatchRequest) error {
	if create := r.GetCreateRequest(); create != nil {
		if create.StartRevision != 0 {
			return status.Error(codes.Unimplemented, "no history is kept here")
		}
		_, err := serve(ctx, s, Watch, create, func(Fate) (struct{}, error) {
			st.watches[st.next] = create
			st.send(&pb.WatchResponse{Header: s.header(), WatchId: st.next, Created: true})
			st.next++
			return struct{}{}, nil
		})
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cancel := r.GetCancelRequest(); cancel != nil {
		delete(st.watches, cancel.WatchId)
		st.send(&pb.WatchResponse{Header: s.header(), WatchId: cancel.WatchId, Canceled: true})
	}
	if r.GetProgressRequest() != nil && len(st.watches) > 0 {
		st.send(&pb.WatchResponse{Header: s.header(), WatchId: everyWatch})
	}
	return nil
}

// send posts an answer. The caller has the server's mutex.
func (st *stream) send(answer *pb.WatchResponse) {
	st.answers = append(st.answers, answer)
	select {
	case st.more <- struct{}{}:
	default:
	}
}

// sendTo sends what is posted, until the stream ends.
func (s *Server) sendTo(ctx context.Context, wire pb.Watch_WatchServer, st *stream) {
	for {
		select {
		case <-st.more:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		answers := st.answers
		st.answers = nil
		s.mu.Unlock()
		for _, answer := range answers {
			_ = wire.Send(answer) // Recv says why it failed
		}
	}
}

// publish sends all watches what has changed at the present revision.
func (s *Server) publish(events []*mvccpb.Event) {
	for st := range s.streams {
		for id, what := range st.watches {
			if seen := slices.DeleteFunc(slices.Clone(events), func(ev *mvccpb.Event) bool { return !sees(what, ev) }); len(seen) > 0 {
				st.send(&pb.WatchResponse{Header: s.header(), WatchId: id, Events: seen})
			}
		}
	}
}

// sees reports whether an event is for a watch.
func sees(what *pb.WatchCreateRequest, ev *mvccpb.Event) bool {
	if ev.Type == mvccpb.Event_PUT && slices.Contains(what.Filters, pb.WatchCreateRequest_NOPUT) {
		return false
	}
	return covers(what.Key, what.RangeEnd, string(ev.Kv.Key))
}
