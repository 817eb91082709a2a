package txn

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/backoff"
	"github.com/jagregory/locker/v2/internal/tasks"
)

// Config is what a Store needs from the client that it works for. All of it is required,
// and is not changed once the Store is used.
type Config struct {
	KV         pb.KVClient     // of etcd, with the retries of its client
	Tasks      *tasks.Group    // counts the goroutines and timers of the Store
	Base       context.Context // of requests, which may outlast the calls that wait for them
	HedgeDelay time.Duration   // how long a request has no answer before it is hedged
	InFlight   int             // how many transactions are in flight at a time

	// Closed returns an error once no request can be answered any more, else nil.
	Closed func() error
	// Explain returns why a request that ended with an error of its context was not
	// answered, if that can be found out, else the error itself.
	Explain func(error) error
	// Interrupted returns the error of a call whose context ended before it made a request.
	Interrupted func(ctx context.Context) error
}

// Store makes requests to etcd's key-value store. It is safe for concurrent use.
type Store struct {
	Config
	budget  budget
	carried atomic.Int64 // bytes of large requests and answers on their way
	took    atomic.Int64 // nanoseconds that the last write took that was answered
	group   group
}

// New returns a Store. It starts no goroutine.
func New(config Config) *Store {
	s := &Store{Config: config}
	s.budget.window = firstHedges
	s.group.init(s)
	return s
}

// Txn is a guarded write: Then is applied if all of When hold, and the Record, if there is
// one, has not been written since Epoch; otherwise, Otherwise is.
type Txn struct {
	Name            string  // whose queue it writes; "" for a record, or several queues: it is sent alone
	Shared          bool    // it may leave together with others of the Name that are Shared
	Record          *Record // nil for none
	Epoch           int64   // the mod revision of the Record
	When            []*pb.Compare
	Then, Otherwise []*pb.RequestOp
	Flat            *Flat // what stands for When and Then in a flat transaction; nil for those
}

// Flat is part of a flat transaction, which is refused as a whole, and then reads nothing for
// the write.
type Flat struct {
	When []*pb.Compare
	Then []*pb.RequestOp
}

// flat returns the part of t in a flat transaction.
func (t *Txn) flat() Flat {
	if t.Flat != nil {
		return *t.Flat
	}
	return Flat{t.When, t.Then}
}

// Record is a key that guards writes. There is one of each key.
type Record struct {
	Key   string
	Learn func(epoch int64) // called with a newer mod revision that was seen; it must not block
}

// guard returns the compare that the record is as it was.
func (t Txn) guard() *pb.Compare { return CmpMod(t.Record.Key, t.Epoch) }

// request returns t as a request; unless it is guarded, without the compare of its epoch.
func (t Txn) request(guarded bool) *pb.TxnRequest {
	r := &pb.TxnRequest{Compare: t.When, Success: t.Then, Failure: t.Otherwise}
	if guarded && t.Record != nil {
		r.Compare = append(slices.Clip(t.When), t.guard())
	}
	return r
}

// Commit submits t and blocks until etcd has answered for certain or ctx has ended. t must
// be idempotent, since it may be applied more than once. only reports that the answer is
// that of the only attempt.
func (s *Store) Commit(ctx context.Context, t Txn) (resp *pb.TxnResponse, only bool, err error) {
	return s.Write(ctx, &Write{Txn: t})
}

// Write is Commit for a write that may have Begun and Landed functions, which are called
// for each of its attempts.
func (s *Store) Write(ctx context.Context, w *Write) (resp *pb.TxnResponse, only bool, err error) {
	if ctx.Err() != nil {
		w.land(Outcome{Err: ErrUnsent})
		return nil, false, s.Interrupted(ctx)
	}
	s.Start(ctx, w)
	return s.Await(ctx, w)
}

// Start submits w. If w leaves at once and alone, and answers are quick, Start makes the first attempt in this
// goroutine: to start another, and to be woken by it, takes as long as all that etcd's
// client does. Then it blocks until the attempt is answered, has failed or is late, and for
// no longer than endedWait once ctx has ended; otherwise it does not block. Unless the
// outcome is certain then, Await or Forget must follow.
func (s *Store) Start(ctx context.Context, w *Write) {
	b := s.group.submit(w)
	if b == nil {
		return
	}
	alone := len(b.writes) == 1 && b.writes[0] == w // others must not depend on ctx
	if !alone || ctx.Err() != nil || s.slow() {
		s.group.start(b)
		return
	}
	stop := context.AfterFunc(ctx, b.hurry)
	defer stop()
	b.run(true)
}

// slow reports whether an answer takes so long that a caller whose context ends would cut it
// off. Then another goroutine costs next to nothing.
func (s *Store) slow() bool { return time.Duration(s.took.Load()) > endedWait/2 }

// Await blocks until etcd has answered for certain, or ctx has ended; then it forgets w,
// which may have been applied, or may yet be, but is not tried again.
func (s *Store) Await(ctx context.Context, w *Write) (resp *pb.TxnResponse, only bool, err error) {
	if !w.Decided() {
		select {
		case <-w.Done():
		case <-ctx.Done():
			last := s.Forget(w)
			if last == ErrUnsent {
				last = ctx.Err()
			}
			return nil, false, Ended(ctx, s.Explain(last))
		}
	}
	return w.result.Resp, w.result.Only, w.result.Err
}

// Forget gives up waiting for w, which is not tried again. If w was never sent, or only
// refused for certain, Forget returns ErrUnsent. Otherwise w may have been applied, or may
// yet be; Forget returns what is known of why there was no answer.
func (s *Store) Forget(w *Write) (last error) { return s.group.forget(w) }

// Waiting returns how many writes are yet to be sent, for tests.
func (s *Store) Waiting() int { return s.group.waiting() }

// Send makes a single attempt at a transaction that only reads. The error is gRPC's;
// clientv3.ContextError makes it etcd's.
func (s *Store) Send(ctx context.Context, t Txn) (*pb.TxnResponse, error) {
	return s.send(&Repeats{Context: ctx}, t)
}

// Ask makes a request until etcd has answered it for certain or ctx has ended. The request
// must change nothing, or be idempotent.
func Ask[T any](ctx context.Context, s *Store, request func(context.Context) (T, error)) (T, error) {
	return AskFor(ctx, ctx, s, 0, request)
}

// AskFor is Ask for a request that may take longer than a small answer does: allowed is
// added to the hedge delay. Its attempts end with attemptCtx. If that outlives
// ctx, each attempt is given the time to be answered, also after another was.
func AskFor[T any](ctx, attemptCtx context.Context, s *Store, allowed time.Duration, request func(context.Context) (T, error)) (answer T, err error) {
	last := error(context.DeadlineExceeded) // there was no answer
	late := time.Duration(0)
	if attemptCtx != ctx {
		late = s.LateAnswerWait()
	}
	for pause := (backoff.Pause{}); ctx.Err() == nil; _ = pause.Wait(ctx) {
		answer, err = hedge(attemptCtx, s, allowed, late, request)
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
