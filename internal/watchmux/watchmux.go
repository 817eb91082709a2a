// Package watchmux puts all watches of a client on one stream of etcd, and notices when
// that stream has gone silent: the member at its other end may have stopped, or may be cut
// off from the others, and etcd's client does not notice either.
//
//	watches   a  b  c          Open, Keep, Again
//	           \ | /
//	stream       |             one at a time, to one member
//	             |  check      has it shown the revision of a linearizable read?
//	etcd      m0 m1 m2         if it is silent, and a stream to another member is not,
//	                           that takes its place, and the watches end
//
// A watch that has ended with its stream misses events. A caller that goes on opens another
// watch, and then reads what there is.
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

// Config is what a Mux needs from the client that it works for.
type Config struct {
	Conn      func() *grpc.ClientConn // the connection to etcd
	Endpoints func() []string         // the addresses of the members
	Tasks     *tasks.Group            // counts the goroutines and timers of the Mux
	Ctx       context.Context         // when it ends, the Mux checks its stream no more
	Base      context.Context         // of streams; ends later
	Log       *slog.Logger

	// HedgeDelay is how often the stream is checked, and how long it may be silent after a
	// read before a stream to another member is tried.
	HedgeDelay time.Duration
	// Read makes a linearizable read of a key, and returns the header of the answer.
	Read func(ctx context.Context, key string) (*pb.ResponseHeader, error)
	// Reset is told why watches have ended, for one of the reasons below. It is called under
	// mutexes, and must not block.
	Reset func(cause string)
}

// Mux opens watches on one stream. It is safe for concurrent use.
type Mux struct {
	Config
	Idle time.Duration // how long Keep keeps a watch; not to be changed once the Mux is used

	mu       sync.Mutex // guards what follows; no request is made under it
	stream   *stream    // the present one; nil at first
	checking bool
	seen     []checkpoint          // the last few, the oldest first
	kept     map[string]*keptWatch // by key: watches that are kept for a while after their use
}

// Why watches have ended by themselves.
const (
	disconnect = "disconnect" // the stream broke
	noAnswer   = "no answer"  // of a member, while another answered
	compaction = "compaction" // etcd no longer has what the watch asked for
	refused    = "refused"    // by etcd
	restore    = "restore"    // etcd is at an earlier revision than before
	unused     = "unused"     // it was on trial; not reported
)

// checkpoint is a time and a revision that the cluster had not passed by then.
type checkpoint struct {
	at       time.Time
	revision int64
}

// New returns a Mux. It opens no stream before the first watch.
func New(config Config) *Mux {
	return &Mux{Config: config, Idle: watchIdle, kept: make(map[string]*keptWatch)}
}

// Open opens a watch and blocks until etcd has confirmed it, or ctx ends. From then on, or
// from Since on, the watch has every change. After an error there is no watch; an error that
// matches ErrEnded is worth another attempt.
func (m *Mux) Open(ctx context.Context, what Target) (*Watch, error) {
	watches, err := m.OpenAll(ctx, []Target{what})
	if err != nil {
		return nil, err
	}
	return watches[0], nil
}

// OpenAll is Open for several watches, which one goroutine uses, see NextOf.
func (m *Mux) OpenAll(ctx context.Context, whats []Target) ([]*Watch, error) {
	m.mu.Lock()
	if m.stream == nil || !m.stream.alive() {
		m.stream = newStream(m)
		m.stream.use()
	}
	s := m.stream
	if !m.checking {
		m.checking = true
		m.Tasks.Run(m.check)
	}
	m.mu.Unlock()
	watches, ready := make([]*Watch, len(whats)), make(chan struct{}, 1)
	for i, what := range whats {
		watches[i] = s.watch(what, ready)
	}
	for _, w := range watches {
		// The confirmation is the first answer.
		confirmed, err := w.Next(ctx)
		if err != nil {
			CloseAll(watches)
			return nil, err
		}
		w.Opened, w.Reached = confirmed.Header.Revision, confirmed.Header.Revision
	}
	return watches, nil
}

// CloseAll closes several watches.
func CloseAll(watches []*Watch) {
	for _, w := range watches {
		w.Close()
	}
}

// keptWatch is a watch that nobody uses at the moment, or a note that there was none.
type keptWatch struct {
	*Watch
	expiry *tasks.Alarm
}

// watchIdle is how long a watch is kept by default.
const watchIdle = time.Second

// Keep keeps a watch of key open for a while after its use, instead of closing it: a caller
// that often waits for the same name is spared opening another. The caller must not use w
// any more. If w is nil, Keep only notes that the key was waited for; a watch that is kept
// already stays.
func (m *Mux) Keep(key string, w *Watch) {
	m.mu.Lock()
	former := m.kept[key]
	if former != nil {
		former.expiry.Stop()
		if w == nil {
			w, former.Watch = former.Watch, nil
		}
	}
	kept := &keptWatch{Watch: w}
	kept.expiry = m.Tasks.After(m.Idle, func() { m.expire(key, kept) })
	m.kept[key] = kept
	m.mu.Unlock()
	if former != nil {
		former.Close()
	}
}

// expire closes a watch that was kept, unless it is in use again.
func (m *Mux) expire(key string, kept *keptWatch) {
	m.mu.Lock()
	expired := m.kept[key] == kept
	if expired {
		delete(m.kept, key)
	}
	m.mu.Unlock()
	if expired {
		kept.Close()
	}
}

// Keeps reports whether key was waited for lately.
func (m *Mux) Keeps(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.kept[key] != nil
}

// Again returns the watch of key that was kept, which the caller has to close or keep
// again, or nil if there was none. A watch is left where it is if events after the revision
// have been read from it: whoever has read them, the caller would miss them.
func (m *Mux) Again(key string, revision int64) *Watch {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := m.kept[key]
	if kept == nil || kept.Watch != nil && kept.Reached > revision {
		return nil
	}
	delete(m.kept, key)
	kept.expiry.Stop()
	return kept.Watch
}

// End forgets the watches that are kept. It does not close them: they end with Base.
func (m *Mux) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.kept {
		w.expiry.Stop()
	}
	clear(m.kept)
}

// ErrEnded is the error of a watch that has ended and may be opened again.
var ErrEnded = errors.New("watch ended")

// Target says what a Watch watches.
type Target struct {
	Key       string
	Below     bool // all keys that begin with Key
	Deletions bool // no puts
	Progress  bool // also answers without events, which show the revision reached

	// Since is the revision from which on all changes are reported; 0 means those after the
	// watch is opened. etcd serves a watch that begins in the past from a loop that runs every
	// 100 ms. Releases before 3.4.34 and 3.5.16 may lose a deletion at the very first revision
	// (etcd issue 18089), so that should be one without.
	Since int64
}

// Watch is one watch on a stream. It must be closed or kept. One goroutine may use it at a
// time.
type Watch struct {
	Target
	stream  *stream
	ready   chan struct{} // has an item when there is something to read
	Opened  int64         // revision at which etcd had opened it
	Reached int64         // the larger of that and the revision of the last event that Next has returned

	id     int64         // this and what follows is guarded by the stream's mutex
	posted *list.Element // until the request for it is sent
	closed bool

	mu      sync.Mutex          // guards what follows
	answers []*pb.WatchResponse // yet to be read, the oldest first
	err     error               // after it no answer comes
}

// add queues an answer for Next.
func (w *Watch) add(answer *pb.WatchResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, answer)
	w.notify()
}

// end makes Next return err once the answers are read.
func (w *Watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	w.notify()
}

// notify wakes Next. The caller holds w.mu.
func (w *Watch) notify() {
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// Next blocks for the next answer and returns it. At the end of the watch, once all answers
// are read, it returns the watch's error; when ctx ends first, that of ctx.
func (w *Watch) Next(ctx context.Context) (*pb.WatchResponse, error) {
	for {
		if answer, err := w.take(); answer != nil || err != nil {
			return answer, err
		}
		select {
		case <-w.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// NextOf is Next for whichever of the watches has an answer, or ends, first. They must have
// been opened together.
func NextOf(ctx context.Context, watches []*Watch) (*pb.WatchResponse, error) {
	for {
		for _, w := range watches {
			if answer, err := w.take(); answer != nil || err != nil {
				return answer, err
			}
		}
		select {
		case <-watches[0].ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns the next answer, nil if there is none yet, or why none will come.
func (w *Watch) take() (*pb.WatchResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.answers) == 0 {
		return nil, w.err
	}
	answer := w.answers[0]
	if w.answers = w.answers[1:]; len(w.answers) == 0 {
		w.answers = nil
	}
	if n := len(answer.Events); n > 0 {
		w.Reached = max(w.Reached, answer.Events[n-1].Kv.ModRevision)
	}
	return answer, nil
}

// Close closes the watch. It does not block, and does nothing if w is nil.
func (w *Watch) Close() {
	if w != nil {
		w.stream.close(w)
	}
}
