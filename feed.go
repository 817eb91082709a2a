package locker

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/tasks"
)

// feed is where a client's watches come from: one stream for all of them, opened
// when it is needed. A stream can stay silent because the member at its other end
// has stopped, or was cut off from the others. So while somebody watches, the feed checks
// it from time to time, and when it does not answer, but one to another member does,
// takes that.
type feed struct {
	client *Client
	idle   time.Duration // for how long a watch is kept

	mu       sync.Mutex // guards what follows; no request is made under it
	stream   *stream    // the present one, nil at first
	checking bool
	seen     []checkpoint         // the last few
	kept     map[string]keptWatch // by key, for a while after their use
}

// checkpoint says: at that time, the cluster had reached that revision.
type checkpoint struct {
	at       time.Time
	revision int64
}

func newFeed(c *Client) *feed {
	return &feed{client: c, idle: watchIdle, kept: make(map[string]keptWatch)}
}

// open starts a watch and returns once etcd has confirmed it: then it has
// every change from now on. It is opened without a revision, because etcd serves
// a watch that starts at or below the present one from a loop of 100 ms.
func (f *feed) open(ctx context.Context, what watched) (*watch, error) {
	f.mu.Lock()
	if f.stream == nil || !f.stream.alive() {
		f.stream = newStream(f.client)
	}
	stream := f.stream
	if !f.checking {
		f.checking = true
		f.client.tasks.Run(f.check)
	}
	f.mu.Unlock()
	w := stream.watch(what)
	confirmed, err := w.next(ctx) // that is the first answer
	if err != nil {
		w.close()
		return nil, err
	}
	w.opened = confirmed.Header.Revision
	return w, nil
}

// keptWatch is a watch that nobody uses at the moment.
type keptWatch struct {
	*watch
	expiry *tasks.Alarm
}

const watchIdle = time.Second

// keep lets a watch live on for a while: whoever waited for a name and takes it
// often is spared opening another.
func (f *feed) keep(w *watch) {
	f.again(w.key).close()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept[w.key] = keptWatch{w, f.client.tasks.After(f.idle, func() {
		f.mu.Lock()
		expired := f.kept[w.key].watch == w
		if expired {
			delete(f.kept, w.key)
		}
		f.mu.Unlock()
		if expired {
			w.close()
		}
	})}
}

// keeps reports whether a watch of key is kept.
func (f *feed) keeps(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.kept[key]
	return ok
}

// again returns the watch of key that was kept, nil if there is none. Whoever asks
// is the only one to use the key.
func (f *feed) again(key string) *watch {
	f.mu.Lock()
	defer f.mu.Unlock()
	w, ok := f.kept[key]
	if ok {
		delete(f.kept, key)
		w.expiry.Stop()
	}
	return w.watch
}

// end lets go of the watches that are kept.
func (f *feed) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range f.kept {
		w.expiry.Stop()
	}
	clear(f.kept)
}

// errWatchEnded is what a watch ends with that is worth opening again.
var errWatchEnded = errors.New("watch ended")

// watched is what a watch is for.
type watched struct {
	key       string
	below     bool // all keys that begin with key
	deletions bool // and nothing else
	progress  bool // and how far the watch has come
}

// watch is one watch on a stream. It must be closed or kept.
type watch struct {
	watched
	stream *stream
	news   chan struct{} // has an item when there is something to read
	opened int64         // the revision at which etcd had it open; set by the feed

	id     int64         // this and what follows is guarded by the stream's mutex
	posted *list.Element // until the request for it is sent
	closed bool

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
