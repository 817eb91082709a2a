package txn

import (
	"context"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// Config is what a Store needs of the client that it works for.
type Config struct {
	KV         pb.KVClient     // of etcd, with the retries of its client
	Tasks      *tasks.Group    // that count what goes on in the background
	Base       context.Context // of requests that nobody waits for any more
	HedgeDelay time.Duration   // after which a request without an answer is made once more

	// Closed returns an error once no request can be answered any more.
	Closed func() error
	// Explain finds out why a request that ended with an error of its context was not
	// answered, if that can be known.
	Explain func(error) error
	// Interrupted is the error of a call that ctx has ended before it made a request.
	Interrupted func(ctx context.Context) error
}

// Store makes requests to etcd's key-value store. It is safe for concurrent use.
type Store struct {
	Config
	budget  budget
	carried atomic.Int64 // bytes of large requests and answers under way
	group   group
}

// New returns a Store. It starts no goroutine.
func New(config Config) *Store {
	s := &Store{Config: config}
	s.budget.window = firstHedges
	s.group.init(s)
	return s
}

// Txn is a guarded write: Then if all of When holds, and the Record, if there is one, has
// not been written since Epoch; else Otherwise.
type Txn struct {
	Name            string            // whose queue it writes; "" for a record
	Record          string            // the key of the record of a session
	Epoch           int64             // its mod revision
	Learn           func(epoch int64) // called with a newer one that was seen; may be nil
	When            []*pb.Compare
	Then, Otherwise []*pb.RequestOp
}

// request is t without its epoch.
func (t Txn) request() *pb.TxnRequest {
	return &pb.TxnRequest{Compare: t.When, Success: t.Then, Failure: t.Otherwise}
}

// Commit submits t until etcd has answered for certain or ctx has ended. Since t may then
// have been applied more than once, it must be idempotent. only reports that the answer is
// that of the only attempt.
func (s *Store) Commit(ctx context.Context, t Txn) (resp *pb.TxnResponse, only bool, err error) {
	return s.Write(ctx, &Write{Txn: t})
}

// Write is Commit for a write that is told of each of its attempts.
func (s *Store) Write(ctx context.Context, w *Write) (resp *pb.TxnResponse, only bool, err error) {
	if ctx.Err() != nil {
		w.land(Outcome{Err: ErrUnsent})
		return nil, false, s.Interrupted(ctx)
	}
	s.Submit(w)
	select {
	case <-w.Done():
		return w.result.Resp, w.result.Only, w.result.Err
	case <-ctx.Done():
		last := s.Forget(w)
		if last == ErrUnsent {
			last = ctx.Err()
		}
		return nil, false, Ended(ctx, s.Explain(last))
	}
}

// Submit is Write for a caller that waits by itself. It does not block.
func (s *Store) Submit(w *Write) { s.group.submit(w) }

// Forget is for a caller that waits no longer, see group.
func (s *Store) Forget(w *Write) (last error) { return s.group.forget(w) }

// Waiting returns how many writes wait for the one in flight.
func (s *Store) Waiting() int { return s.group.waiting() }

// Send makes one attempt at a transaction and no more. The error is etcd's.
func (s *Store) Send(ctx context.Context, t Txn) (*pb.TxnResponse, error) {
	return s.send(&Repeats{Context: ctx}, t)
}

// Ask makes a request that changes nothing, or may be made any number of times, until etcd
// has answered it for certain or ctx has ended.
func Ask[T any](ctx context.Context, s *Store, request func(context.Context) (T, error)) (T, error) {
	return AskFor(ctx, ctx, s, 0, request)
}

// AskFor is Ask for what may take longer than a small answer does, by allowed. Its attempts
// end with attempts; if that is longer than ctx, they are all given the time to be answered.
func AskFor[T any](ctx, attempts context.Context, s *Store, allowed time.Duration, request func(context.Context) (T, error)) (answer T, err error) {
	last := error(context.DeadlineExceeded) // there was no answer
	late := time.Duration(0)
	if attempts != ctx {
		late = s.LateAnswerWait()
	}
	for pause := (backoff.Pause{}); ctx.Err() == nil; _ = pause.Wait(ctx) {
		answer, err = hedge(attempts, s, allowed, late, request)
		if err == nil || !Transient(err) {
			return answer, err
		}
		if closed := s.Closed(); closed != nil {
			return answer, closed
		}
		if !IsContextError(err) {
			last = err
		}
	}
	if last == context.DeadlineExceeded && err == nil {
		return answer, s.Interrupted(ctx) // it was not even made
	}
	return answer, Ended(ctx, s.Explain(last))
}
