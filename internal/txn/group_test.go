package txn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2/internal/backoff"
)

// scriptedKV answers transactions as a script says, each after a moment.
type scriptedKV struct {
	pb.KVClient
	start  time.Time
	script func(n int, keys string) []error // for the n-th, which writes these keys: one error for each time it is sent
	gone   string                           // a record that is not there

	mu       sync.Mutex // guards what follows
	sent     []sent
	requests []*pb.TxnRequest
}

// sent is a transaction that was sent: when, and the keys it writes, with spaces between them.
type sent struct {
	at   time.Duration
	keys string
}

var (
	errNeverComes = errors.New("never comes")            // no answer
	errNotThen    = errors.New("a compare did not hold") // answered as refused, without an error
	errOldEpoch   = errors.New("a record was written")   // answered as refused, with the new record
)

func (k *scriptedKV) Txn(ctx context.Context, request *pb.TxnRequest, opts ...grpc.CallOption) (*pb.TxnResponse, error) {
	keys := strings.Join(keysOf(request), " ")
	k.mu.Lock()
	n := len(k.sent)
	k.sent = append(k.sent, sent{time.Since(k.start), keys})
	k.requests = append(k.requests, request)
	k.mu.Unlock()
	results := []error{nil}
	if k.script != nil {
		results = k.script(n, keys)
	}
	var err error
	for _, err = range results {
		if err == errNeverComes {
			<-ctx.Done()
		}
		if ended := backoff.Sleep(ctx, moment); ended != nil {
			err = ended
		}
		for _, opt := range opts {
			if on, ok := opt.(grpc.OnFinishCallOption); ok {
				if err == errNotThen || err == errOldEpoch {
					on.OnFinish(nil)
				} else {
					on.OnFinish(err)
				}
			}
		}
	}
	switch err {
	case nil:
		return applied(request, int64(n+1)), nil
	case errOldEpoch:
		resp := &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: int64(n + 1)}}
		for _, op := range request.Failure {
			read, record := new(pb.RangeResponse), &mvccpb.KeyValue{Key: op.GetRequestRange().Key, ModRevision: newEpoch}
			if string(record.Key) != k.gone {
				read.Kvs = append(read.Kvs, record)
			}
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: read}})
		}
		return resp, nil
	case errNotThen:
		return &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: int64(n + 1)}}, nil
	}
	return nil, err
}

// times returns a script in which each error happens to one transaction, in this order, and none to those that follow.
func times(errs ...error) func(int, string) []error {
	return func(n int, _ string) []error {
		if n < len(errs) {
			return []error{errs[n]}
		}
		return []error{nil}
	}
}

// newEpoch is the mod revision of a record that was written.
const newEpoch = 9

func keysOf(request *pb.TxnRequest) (keys []string) {
	for _, op := range request.Success {
		if nested := op.GetRequestTxn(); nested != nil {
			keys = append(keys, keysOf(nested)...)
		} else {
			keys = append(keys, string(op.GetRequestPut().Key))
		}
	}
	return keys
}

func applied(request *pb.TxnRequest, revision int64) *pb.TxnResponse {
	resp := &pb.TxnResponse{Succeeded: true, Header: &pb.ResponseHeader{Revision: revision}}
	for _, op := range request.Success {
		own := &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: new(pb.PutResponse)}}
		if nested := op.GetRequestTxn(); nested != nil {
			own = &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: applied(nested, revision)}}
		}
		resp.Responses = append(resp.Responses, own)
	}
	return resp
}

// grouped is a Store whose transactions are scripted.
type grouped struct {
	*requests
	kv *scriptedKV
}

func inGroup(t *testing.T, script func(n int, keys string) []error, f func(t *testing.T, g *grouped)) {
	t.Helper()
	inBubble(t, func(t *testing.T, r *requests) {
		g := &grouped{r, &scriptedKV{start: r.start, script: script}}
		r.KV = g.kv
		g.InFlight = 1 // flight_test.go has more
		f(t, g)
	})
}

// followed is a write that records the outcomes of its attempts.
type followed struct {
	Write
	mu    sync.Mutex // guards what follows
	begun int        // attempts
	fates []Outcome
}

// submit submits a write of name that puts key, with a value of that size.
func (g *grouped) submit(name, key string, size int) *followed {
	return g.submitTxn(Txn{Name: name, Then: []*pb.RequestOp{OpPut(key, strings.Repeat("v", size), 0)}})
}

// submitTxn submits a write.
func (g *grouped) submitTxn(t Txn) *followed {
	w := &followed{begun: 1}
	w.Write = Write{
		Txn: t,
		Begun: func(int64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.begun++
		},
		Landed: func(o Outcome) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.fates = append(w.fates, o)
		},
	}
	if b := g.group.submit(&w.Write); b != nil {
		g.group.start(b)
	}
	return w
}

// all submits a write for each key, whose name is the first letter of the key.
func (g *grouped) all(keys string) (all []*followed) {
	for _, key := range strings.Fields(keys) {
		all = append(all, g.submit(key[:1], key, 0))
	}
	return all
}

// sent checks which transactions were sent, and that nothing is left to do.
func (g *grouped) sent(want ...sent) {
	g.t.Helper()
	g.idle()
	if !slices.Equal(g.kv.sent, want) {
		g.t.Errorf("sent\n%v, want\n%v", g.kv.sent, want)
	}
}

// keys returns the keys that each transaction wrote.
func (g *grouped) keys() (keys []string) {
	g.kv.mu.Lock()
	defer g.kv.mu.Unlock()
	for _, s := range g.kv.sent {
		keys = append(keys, s.keys)
	}
	return keys
}

// is checks the result of a write, and that each of its attempts has an outcome.
func (w *followed) is(t *testing.T, err error, only bool) {
	t.Helper()
	select {
	case <-w.done:
	default:
		t.Errorf("%s has no result", w.key())
		return
	}
	if !errors.Is(w.result.Err, err) || w.result.Only != only {
		t.Errorf("the result of %s is %v, only: %v", w.key(), w.result.Err, w.result.Only)
	}
	if err == nil && (w.result.Resp == nil || !w.result.Resp.Succeeded || w.result.Resp.Header == nil) {
		t.Errorf("the answer for %s is %v", w.key(), w.result.Resp)
	}
	w.landings(t)
}

// tried returns how many attempts have begun, and their outcomes so far.
func (w *followed) tried() (begun int, fates []Outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.begun, slices.Clone(w.fates)
}

// landings checks that each of the attempts has an outcome.
func (w *followed) landings(t *testing.T) {
	t.Helper()
	if begun, fates := w.tried(); begun != len(fates) {
		t.Errorf("%d attempts at %s have begun, %d have an outcome", begun, w.key(), len(fates))
	}
}

func (w *followed) key() string { return string(w.Then[0].GetRequestPut().Key) }

// doubts checks which of the attempts are in doubt.
func (w *followed) doubts(t *testing.T, want ...bool) {
	t.Helper()
	var got []bool
	_, fates := w.tried()
	for _, o := range fates {
		got = append(got, o.State() == InDoubt)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the attempts at %s are in doubt: %v, want %v", w.key(), got, want)
	}
}

func TestGroup_KeepsTheOrderOfANameAndSendsOneAtATime(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		all := g.all("x1 a1 a2 a3 b1 b2 x2")
		g.at(time.Second)
		g.sent(sent{0, "x1"}, sent{moment, "a1 b1 x2"}, sent{2 * moment, "a2 b2"}, sent{3 * moment, "a3"})
		for _, w := range all {
			w.is(t, nil, true)
			w.doubts(t, false)
		}
	})
}

func TestGroup_ARecordLeavesAtOnceAndAlone(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.all("a1 b1")
		g.submit("", "record", 0)
		g.at(moment / 2)
		g.submit("", "other", 0)
		g.at(time.Second)
		if len(g.kv.sent) != 4 || g.kv.sent[2] != (sent{moment / 2, "other"}) || g.kv.sent[3] != (sent{moment, "b1"}) {
			t.Errorf("sent %v", g.kv.sent)
		}
	})
}

func TestGroup_SplitsWhatIsTooMuchByNumber(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.submit("first", "first", 0)
		var keys []string
		for i := range 2*MaxTogether + 7 {
			keys = append(keys, fmt.Sprint(i))
			g.submit(fmt.Sprint(i), fmt.Sprint(i), 0)
		}
		g.at(time.Second)
		g.sent(sent{0, "first"},
			sent{moment, strings.Join(keys[:MaxTogether], " ")},
			sent{2 * moment, strings.Join(keys[MaxTogether:2*MaxTogether], " ")},
			sent{3 * moment, strings.Join(keys[2*MaxTogether:], " ")})
	})
}

func TestGroup_SplitsWhatIsTooMuchBySize(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.submit("x", "x", 0)
		const half = maxBytesTogether/2 - 1 // with its key
		for _, name := range []string{"a", "b", "c", "d"} {
			g.submit(name, name, half)
		}
		g.submit("e", "e", 2*maxBytesTogether)
		g.submit("f", "f", 1)
		g.at(time.Second)
		g.sent(sent{0, "x"}, sent{moment, "a b"}, sent{2 * moment, "c d"}, sent{3 * moment, "e"}, sent{4 * moment, "f"})
	})
}

func TestGroup_WhatIsRefusedTogetherLeavesAlone(t *testing.T) {
	for name, refusal := range map[string]error{"for one": errRefused, "by a compare": errNotThen} {
		t.Run(name, func(t *testing.T) {
			script := func(_ int, keys string) []error {
				if strings.Contains(keys, "bad") {
					return []error{refusal}
				}
				return []error{nil}
			}
			inGroup(t, script, func(t *testing.T, g *grouped) {
				all := g.all("x a bad c")
				g.at(time.Second)
				g.idle()
				got, want := g.keys(), []string{"x", "a bad c", "a", "bad", "c"}
				doubts := []bool{false}
				if refusal == errNotThen { // then they have been nested before
					want = slices.Insert(want, 1, want[1])
					doubts = append(doubts, false)
				}
				slices.Sort(got[len(got)-3:]) // they are sent at the same time
				if !slices.Equal(got, want) {
					t.Errorf("sent %q, want %q", got, want)
				}
				for _, w := range all {
					switch {
					case w.key() != "bad":
						w.is(t, nil, true)
					case refusal == errRefused:
						w.is(t, errRefused, true)
					case w.result.Err != nil || w.result.Resp.Succeeded || !w.result.Only:
						t.Errorf("the result is %+v", w.result)
					}
					if w.key() == "x" {
						w.doubts(t, false)
					} else {
						w.doubts(t, doubts...)
					}
				}
			})
		})
	}
}

func TestGroup_WhatIsRefusedTogetherAndForgottenDoesNotLeaveAgain(t *testing.T) {
	inGroup(t, times(nil, errRefused), func(t *testing.T, g *grouped) {
		all := g.all("x a b")
		g.at(moment * 3 / 2)
		if err := g.group.forget(&all[1].Write); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("forget returned %v", err)
		}
		g.at(time.Second)
		g.sent(sent{0, "x"}, sent{moment, "a b"}, sent{2 * moment, "b"})
		all[1].landings(t)
		all[1].doubts(t, false)
		all[2].is(t, nil, true)
	})
}

func TestGroup_LearnsHowManyOperationsAServerTakes(t *testing.T) {
	script := func(_ int, keys string) []error {
		if len(strings.Fields(keys)) > 3 {
			return []error{rpctypes.ErrGRPCTooManyOps}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		all := g.all("x a b c d e")
		g.at(time.Second)
		all = append(all, g.all("x a b c d e")...)
		g.at(2 * time.Second)
		g.idle()
		got := g.keys()
		if want := []string{"x", "a b", "c d", "e"}; !slices.Equal(got[len(got)-4:], want) {
			t.Errorf("sent %q, want %q at the end", got, want)
		}
		for _, w := range all {
			w.is(t, nil, true)
		}
	})
}

func TestGroup_WhatIsForgottenBeforeItLeavesIsNeverSent(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		all := g.all("x a1 a2 b")
		for _, w := range []*followed{all[1], all[3]} {
			if err := g.group.forget(&w.Write); err != ErrUnsent {
				t.Errorf("forgetting %s returned %v", w.key(), err)
			}
		}
		g.at(time.Second)
		g.sent(sent{0, "x"}, sent{moment, "a2"})
		for _, w := range []*followed{all[1], all[3]} {
			w.landings(t)
			w.doubts(t, false)
			if _, fates := w.tried(); len(fates) != 1 || fates[0].Err != ErrUnsent {
				t.Errorf("its outcomes are %v", fates)
			}
		}
		all[2].is(t, nil, true)
	})
}

func TestGroup_WhatIsForgottenUnderWayIsNotTriedAgain(t *testing.T) {
	inGroup(t, times(nil, errNeverComes), func(t *testing.T, g *grouped) {
		all := g.all("x a b")
		g.at(2 * moment)
		_ = g.group.forget(&all[1].Write)
		g.at(time.Minute)
		g.sent(sent{0, "x"}, sent{moment, "a b"}, sent{moment + testDelay + Allowance(2), "b"})
		all[1].landings(t)
		all[1].doubts(t, true)
		all[2].is(t, nil, false)
	})
}

func TestGroup_WhatAllHaveForgottenHasTheTimeToBeAnsweredOnly(t *testing.T) {
	inGroup(t, func(int, string) []error { return []error{errNeverComes} }, func(t *testing.T, g *grouped) {
		w := g.all("a")[0]
		g.at(moment)
		if err := g.group.forget(&w.Write); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("forget returned %v", err)
		}
		given := g.LateAnswerWait() + Allowance(1)
		g.at(moment + given - 1)
		if _, fates := w.tried(); len(fates) > 0 {
			t.Errorf("its outcomes are %v", fates)
		}
		g.at(moment + given)
		w.landings(t)
		w.doubts(t, true)
		g.sent(sent{0, "a"})
	})
}

func TestGroup_AnAnswerAfterAnAttemptInDoubtIsNotThatOfTheOnlyOne(t *testing.T) {
	inGroup(t, times(errPassing), func(t *testing.T, g *grouped) {
		w := g.all("a")[0]
		g.at(time.Second)
		g.idle()
		w.is(t, nil, false)
		w.doubts(t, true, false)
	})
}

func TestGroup_ARequestThatWasRepeatedIsInDoubtThoughItIsAnswered(t *testing.T) {
	script := func(n int, _ string) []error {
		if n == 1 {
			return []error{errPassing, nil}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		all := g.all("x a b")
		g.at(time.Second)
		g.sent(sent{0, "x"}, sent{moment, "a b"})
		all[0].is(t, nil, true)
		for _, w := range all[1:] {
			w.is(t, nil, false)
			w.doubts(t, true)
		}
	})
}

func TestGroup_WhatHasFailedTogetherGathersAgain(t *testing.T) {
	inGroup(t, times(nil, errPassing), func(t *testing.T, g *grouped) {
		all := g.all("x a b c1")
		g.at(2*moment + backoff.Shortest/4)
		all = append(all, g.all("y c2 d")...) // while the others pause; the first is sent at once
		g.at(time.Second)
		g.idle()
		if want := []string{"x", "a b c1", "y", "c1 d a b", "c2"}; !slices.Equal(g.keys(), want) {
			t.Errorf("sent %q, want %q", g.keys(), want)
		}
		for _, w := range all {
			again := slices.Contains([]string{"a", "b", "c1"}, w.key())
			w.is(t, nil, !again)
		}
	})
}

func TestGroup_TooManyRequestsAreTriedAgain(t *testing.T) {
	inGroup(t, times(nil, rpctypes.ErrGRPCRequestTooManyRequests, rpctypes.ErrGRPCRequestTooManyRequests), func(t *testing.T, g *grouped) {
		all := g.all("x a b")
		g.at(time.Second)
		g.idle()
		if want := []string{"x", "a b", "a b", "a b"}; !slices.Equal(g.keys(), want) {
			t.Errorf("sent %q, want %q", g.keys(), want)
		}
		for _, w := range all[1:] {
			w.is(t, nil, false)
		}
	})
}

func TestGroup_AStuckTransactionHoldsUpOthersForTheHedgeDelay(t *testing.T) {
	inGroup(t, func(_ int, keys string) []error {
		if keys == "a" {
			return []error{errNeverComes}
		}
		return []error{nil}
	}, func(t *testing.T, g *grouped) {
		all := g.all("a b c")
		g.at(testDelay + moment)
		all[1].is(t, nil, true)
		all[2].is(t, nil, true)
		g.kv.mu.Lock()
		if !slices.Contains(g.kv.sent, sent{testDelay, "b c"}) {
			t.Errorf("sent %v", g.kv.sent)
		}
		g.kv.mu.Unlock()
		_ = g.group.forget(&all[0].Write)
		g.at(time.Minute)
		g.idle()
		all[0].landings(t)
	})
}

func TestGroup_WhatARecordRefusesGathersAgainInItsNewEpoch(t *testing.T) {
	script := func(n int, _ string) []error {
		if n == 1 {
			return []error{errOldEpoch}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		var learned []int64
		record := &Record{Key: "r", Learn: func(epoch int64) { learned = append(learned, epoch) }}
		guarded := func(name string) *followed {
			return g.submitTxn(Txn{Name: name, Record: record, Epoch: 5, Then: []*pb.RequestOp{OpPut(name, "", 0)}})
		}
		g.submit("x", "x", 0)
		a, b := guarded("a"), guarded("b")
		g.at(time.Second)
		g.idle()
		for _, w := range []*followed{a, b} {
			w.is(t, nil, true)
			if w.Epoch != newEpoch {
				t.Errorf("%s was written in epoch %d", w.key(), w.Epoch)
			}
		}
		if keys := g.keys(); !slices.Equal(keys, []string{"x", "a b", "a b"}) {
			t.Errorf("sent %q", keys)
		}
		if !slices.Contains(learned, newEpoch) {
			t.Error("the new epoch was not reported")
		}
		for n, epoch := range map[int]int64{1: 5, 2: newEpoch} {
			if compares := g.kv.requests[n].Compare; len(compares) != 1 || compares[0].String() != CmpMod("r", epoch).String() {
				t.Errorf("transaction %d is guarded by %v", n, compares)
			}
		}
	})
}

func TestOutcome_IsOneOfThree(t *testing.T) {
	t.Parallel()
	succeeded := &pb.TxnResponse{Succeeded: true}
	for name, test := range map[string]struct {
		outcome Outcome
		want    State
	}{
		"applied":                       {Outcome{Resp: succeeded}, Applied},
		"a compare did not hold":        {Outcome{Resp: new(pb.TxnResponse)}, Refused},
		"refused":                       {Outcome{Err: errRefused}, Refused},
		"never sent":                    {Outcome{Err: ErrUnsent}, Refused},
		"no answer":                     {Outcome{Err: context.DeadlineExceeded}, InDoubt},
		"a passing trouble":             {Outcome{Err: errPassing}, InDoubt},
		"no space":                      {Outcome{Err: rpctypes.ErrNoSpace}, InDoubt},
		"applied, and sent repeatedly":  {Outcome{Resp: succeeded, repeated: true}, InDoubt},
		"refused, and sent repeatedly":  {Outcome{Err: errRefused, repeated: true}, InDoubt},
		"not then, and sent repeatedly": {Outcome{Resp: new(pb.TxnResponse), repeated: true}, InDoubt},
	} {
		if got := test.outcome.State(); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestStore_AWriteWhoseContextHasEndedIsNeverSent(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var fates []Outcome
		_, _, err := g.Write(ctx, &Write{Txn: Txn{Name: "a", Then: []*pb.RequestOp{OpPut("a", "", 0)}}, Landed: func(o Outcome) { fates = append(fates, o) }})
		if !errors.Is(err, context.Canceled) || len(fates) != 1 || fates[0].State() != Refused {
			t.Errorf("%v; its outcomes are %v", err, fates)
		}
		g.sent()
	})
}

func TestStore_GivesUpWhenItsConnectionIsClosedForGood(t *testing.T) {
	inGroup(t, times(errPassing), func(t *testing.T, g *grouped) {
		closed := errors.New("closed")
		g.Closed = func() error { return closed }
		w := g.submit("a", "a", 0)
		g.at(time.Second)
		g.idle()
		w.is(t, closed, true)
	})
}
