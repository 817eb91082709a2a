package txn

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errCanceledOnTheWay = status.Error(codes.Canceled, "by something on the way")

// etcd's client repeats a request that was canceled on the way. A refusal of the repetition says nothing about the
// first request, which may have been applied.
func TestRepeats_ARefusalLeavesWhatWasCanceledBeforeInDoubt(t *testing.T) {
	t.Parallel()
	once := &Repeats{Context: t.Context()}
	finish := once.count().(grpc.OnFinishCallOption).OnFinish
	finish(errCanceledOnTheWay)
	finish(errRefused)
	if !once.Any() {
		t.Error("the first request is in doubt, but that is not reported")
	}
}

func TestGroup_ARefusalAloneLeavesWhatWasCanceledBeforeInDoubt(t *testing.T) {
	script := func(int, string) []error { return []error{errCanceledOnTheWay, errRefused} }
	inGroup(t, script, func(t *testing.T, g *grouped) {
		w := g.submit("", "record", 0)
		g.at(time.Second)
		g.idle()
		w.is(t, errRefused, false)
		w.doubts(t, true)
	})
}

// A transaction of several writes may have been applied when it was first sent, though its repetition is refused. So
// each write is in doubt, and the answer it then gets alone is not that of its only attempt.
func TestGroup_ARefusalTogetherLeavesWhatWasCanceledBeforeInDoubt(t *testing.T) {
	for name, refusal := range map[string]error{"by a compare": errNotThen, "for one": errRefused} {
		t.Run(name, func(t *testing.T) {
			script := func(n int, _ string) []error {
				if n == 1 {
					return []error{errCanceledOnTheWay, refusal}
				}
				return []error{nil}
			}
			inGroup(t, script, func(t *testing.T, g *grouped) {
				all := g.all("x a b")
				g.at(time.Second)
				g.idle()
				want := map[error]int{errRefused: 4, errNotThen: 3}[refusal] // each alone, or once more together
				if n := len(g.keys()); n != want {
					t.Errorf("%d transactions were sent, %q", n, g.keys())
				}
				for _, w := range all[1:] {
					w.is(t, nil, false)
					_, fates := w.tried()
					doubt := false
					for _, o := range fates {
						doubt = doubt || o.State() == InDoubt
					}
					if !doubt {
						t.Errorf("no attempt at %s is in doubt", w.key())
					}
				}
			})
		})
	}
}

func TestRepeats_CountsWhatMayHaveBeenApplied(t *testing.T) {
	t.Parallel()
	canceled := errCanceledOnTheWay
	noToken := rpctypes.ErrGRPCInvalidAuthToken
	for name, this := range map[string]struct {
		finished []error
		repeated bool
	}{
		"none":                         {nil, false},
		"answered":                     {[]error{nil}, false},
		"refused":                      {[]error{errRefused}, false},
		"failed":                       {[]error{errPassing}, false},
		"canceled, answered":           {[]error{canceled, nil}, true},
		"canceled, canceled":           {[]error{canceled, canceled}, true},
		"failed, answered":             {[]error{errPassing, nil}, true},
		"refused, answered":            {[]error{noToken, nil}, false},
		"refused, refused":             {[]error{noToken, errRefused}, false},
		"refused, canceled, answered":  {[]error{noToken, canceled, nil}, true},
		"canceled, refused, answered":  {[]error{canceled, noToken, nil}, true},
		"too many, answered":           {[]error{rpctypes.ErrGRPCRequestTooManyRequests, nil}, false},
		"ended by its context, failed": {[]error{context.DeadlineExceeded, errPassing}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			once := &Repeats{Context: t.Context()}
			finish := once.count().(grpc.OnFinishCallOption).OnFinish
			for _, err := range this.finished {
				finish(err)
			}
			if once.Any() != this.repeated {
				t.Errorf("repeated: %v", once.Any())
			}
		})
	}
}

func TestRepeats_NoticesACallOfErrBeforeARequestHasFinished(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	before, after := &Repeats{Context: ctx}, &Repeats{Context: ctx}
	if err := before.Err(); err != nil || !before.Any() {
		t.Errorf("%v; repeated: %v", err, before.Any())
	}
	after.count().(grpc.OnFinishCallOption).OnFinish(nil)
	cancel()
	if err := after.Err(); !errors.Is(err, context.Canceled) || after.Any() {
		t.Errorf("%v; repeated: %v", err, after.Any())
	}
}
