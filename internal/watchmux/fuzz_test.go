package watchmux

import (
	"context"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// FuzzAnswersOfAWatchStream gives a stream any answers, one for each byte: a watch gets
// its own, from its confirmation to its end, and no others.
func FuzzAnswersOfAWatchStream(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Add([]byte{0, 0, 1, 9, 2, 10, 18, 3, 11, 4, 2, 0, 33, 34})
	f.Add([]byte{1, 2, 3, 4, 5, 5})
	f.Add([]byte{0, 6, 5, 9, 10})
	f.Add([]byte("0!0000000000!0"))
	f.Fuzz(func(t *testing.T, script []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		s := unconnected(ctx, cancel)
		defer s.end(disconnect)
		var watches []*Watch
		for _, b := range script {
			id := int64(b>>3) - 1 // -1 is for every watch
			answer := &pb.WatchResponse{Header: new(pb.ResponseHeader), WatchId: id}
			switch b & 7 {
			case 0:
				watches = append(watches, s.watch(Target{Key: "a", Progress: id&1 == 0}, make(chan struct{}, 1)))
			case 1:
				if id >= 0 && s.watches[id] == nil { // no server gives an ID twice
					answer.Created = true
					s.dispatch(answer)
				}
			case 2:
				s.dispatch(answer)
			case 3:
				answer.Canceled = true
				s.dispatch(answer)
			case 4:
				answer.Created, answer.Canceled = true, true
				s.dispatch(answer)
			case 5:
				if len(watches) > 0 {
					watches[int(b>>3)%len(watches)].Close()
				}
			default:
				s.takeOutbox()
			}
		}
		for _, w := range watches {
			for i, answer := range w.answers {
				if first := i == 0; answer.Created != first || answer.WatchId != w.id && answer.WatchId != everyWatch {
					t.Errorf("watch %d got %v as answer %d", w.id, answer, i)
				}
			}
			if w.closed && s.watches[w.id] == w {
				t.Errorf("watch %d goes on after it was closed", w.id)
			}
			if w.err == nil && !w.closed && s.watches[w.id] != w && w.posted == nil && !slices.Contains(s.creating, w) {
				t.Errorf("watch %d has been forgotten", w.id)
			}
		}
	})
}
