package txn

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errCanceledOnTheWay = status.Error(codes.Canceled, "by something on the way")

// etcd's client repeats what was canceled on the way. A refusal of the second sending says nothing about the first,
// which may have been applied.
func TestRepeats_ARefusalLeavesWhatWasCanceledBeforeInDoubt(t *testing.T) {
	t.Parallel()
	once := &Repeats{Context: t.Context()}
	finish := once.count().(grpc.OnFinishCallOption).OnFinish
	finish(errCanceledOnTheWay)
	finish(errRefused)
	if !once.Any() {
		t.Error("the first sending is in doubt, and that is not reported")
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

// Of what left together the first sending may have been applied, though the second is refused: each of the writes is
// in doubt, and the answer it gets alone is not that of the only attempt.
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
				if n := len(g.keys()); n != 4 {
					t.Errorf("%d transactions were sent, %q", n, g.keys())
				}
				for _, w := range all[1:] {
					w.is(t, nil, false)
					_, fates := w.tried()
					doubt := false
					for _, o := range fates {
						doubt = doubt || (o.State() == InDoubt)
					}
					if !doubt {
						t.Errorf("no attempt at %s landed in doubt", w.key())
					}
				}
			})
		})
	}
}
