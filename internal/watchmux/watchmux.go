// Package watchmux has all watches of a client on one stream of etcd. What it adds to that
// stream is care for its end: a stream can stay silent because the member at its other end
// has stopped, or was cut off from the others, and etcd's client does not notice.
//
//	watches   a  b  c          Open, Keep, Again
//	           \ | /
//	stream       |             one at a time, to one member
//	             |  check      is it at the revision that a linearizable read has shown?
//	etcd      m0 m1 m2         if it is silent, and a stream to another member is not,
//	                           that takes its place, and the watches end
//
// A watch that has ended with its stream misses events: whoever goes on opens another, and
// reads what there is.
package watchmux

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2/internal/tasks"
)

// Config is what a Mux needs of the client that it works for.
type Config struct {
	Conn      func() *grpc.ClientConn
	Endpoints func() []string
	Tasks     *tasks.Group    // that count its goroutines
	Ctx       context.Context // at whose end it stops checking
	Base      context.Context // of streams
	Log       *slog.Logger

	// HedgeDelay is how often the stream is checked, and how long it may be silent then.
	HedgeDelay time.Duration
	// Read reads a key, linearizably.
	Read func(ctx context.Context, key string) (*pb.ResponseHeader, error)
}

// Mux opens watches. It is safe for concurrent use.
type Mux struct {
	Config
	Idle time.Duration // for how long a watch is kept; set before the Mux is used

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

// New returns a Mux. It opens a stream when that is needed.
func New(config Config) *Mux {
	return &Mux{Config: config, Idle: watchIdle, kept: make(map[string]keptWatch)}
}

// Open starts a watch and returns once etcd has confirmed it: then it has
// every change from now on. It is opened without a revision, because etcd serves
// a watch that starts at or below the present one from a loop of 100 ms.
func (m *Mux) Open(ctx context.Context, what Target) (*Watch, error) {
	m.mu.Lock()
	if m.stream == nil || !m.stream.alive() {
		m.stream = newStream(m)
	}
	stream := m.stream
	if !m.checking {
		m.checking = true
		m.Tasks.Run(m.check)
	}
	m.mu.Unlock()
	w := stream.watch(what)
	confirmed, err := w.Next(ctx) // that is the first answer
	if err != nil {
		w.Close()
		return nil, err
	}
	w.Opened = confirmed.Header.Revision
	return w, nil
}

// keptWatch is a watch that nobody uses at the moment.
type keptWatch struct {
	*Watch
	expiry *tasks.Alarm
}

const watchIdle = time.Second

// Keep lets a watch live on for a while: whoever waited for a name and takes it
// often is spared opening another.
func (m *Mux) Keep(w *Watch) {
	m.Again(w.Key).Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept[w.Key] = keptWatch{w, m.Tasks.After(m.Idle, func() {
		m.mu.Lock()
		expired := m.kept[w.Key].Watch == w
		if expired {
			delete(m.kept, w.Key)
		}
		m.mu.Unlock()
		if expired {
			w.Close()
		}
	})}
}

// Keeps reports whether a watch of key is kept.
func (m *Mux) Keeps(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.kept[key]
	return ok
}

// Again returns the watch of key that was kept, nil if there is none. Whoever asks
// is the only one to use the key.
func (m *Mux) Again(key string) *Watch {
	m.mu.Lock()
	defer m.mu.Unlock()
	w, ok := m.kept[key]
	if ok {
		delete(m.kept, key)
		w.expiry.Stop()
	}
	return w.Watch
}

// End lets go of the watches that are kept.
func (m *Mux) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.kept {
		w.expiry.Stop()
	}
	clear(m.kept)
}

// ErrEnded is what a watch ends with that is worth opening again.
var ErrEnded = errors.New("watch ended")

// Target is what a watch is for.
type Target struct {
	Key       string
	Below     bool // all keys that begin with Key
	Deletions bool // and nothing else
	Progress  bool // and how far the watch has come
}

// Watch is one watch on a stream. It must be closed or kept.
type Watch struct {
	Target
	stream *stream
	ready  chan struct{} // has an item when there is something to read
	Opened int64         // the revision at which etcd had it open;

	id     int64         // this and what follows is guarded by the stream's mutex
	posted *list.Element // until the request for it is sent
	closed bool

	mu      sync.Mutex          // guards what follows
	answers []*pb.WatchResponse // yet to be read, the oldest first
	err     error               // after which no answer comes
}

func (w *Watch) add(answer *pb.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, answer)
	w.notify()
}

func (w *Watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	w.notify()
}

func (w *Watch) notify() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Next returns the next answer. It returns an error at the end of the watch, or of ctx.
func (w *Watch) Next(ctx context.Context) (*pb.WatchResponse, error) {
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
		case <-w.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Close ends the watch, if it is one.
func (w *Watch) Close() {
	if w != nil {
		w.stream.close(w)
	}
}
