package txn

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// share submits, for each key, a write whose name is its first letter; those in lower case are shared.
func (g *grouped) share(keys string) (all []*followed) {
	for _, key := range strings.Fields(keys) {
		name := strings.ToLower(key[:1])
		all = append(all, g.submitTxn(Txn{Name: name, Shared: name == key[:1], Then: []*pb.RequestOp{OpPut(key, "", 0)}}))
	}
	return all
}

func TestShared_WritesOfANameLeaveTogether(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		all := g.share("X a1 a2 a3 A4 a5 a6")
		g.at(time.Second)
		g.sent(sent{0, "X"}, sent{moment, "a1 a2 a3"}, sent{2 * moment, "A4"}, sent{3 * moment, "a5 a6"})
		for _, w := range all {
			w.is(t, nil, true)
		}
	})
}

func TestShared_OneThatIsNotLeavesWithoutThoseBehindIt(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.share("X A1 a2 a3 A4 A5 b1 B2 b3")
		g.at(time.Second)
		g.sent(sent{0, "X"}, sent{moment, "A1 b1"}, sent{2 * moment, "a2 a3 B2"}, sent{3 * moment, "A4 b3"}, sent{4 * moment, "A5"})
	})
}

func TestShared_LaterWritesOfTheNameWaitForAnAnswer(t *testing.T) {
	inFlight(t, nil, func(t *testing.T, g *grouped) {
		g.share("a1 a2 a3")
		g.at(moment / 2)
		if got := fmt.Sprint(g.keys()); got != "[a1]" {
			t.Errorf("in flight are %v, though the others are of the same name", got)
		}
		g.share("a4 b1 A5 a6")
		g.at(time.Second)
		g.idle()
		for key, at := range map[string]time.Duration{"a1": 0, "b1": moment / 2, "a2": moment, "a3": moment, "a4": moment, "A5": 2 * moment, "a6": 3 * moment} {
			if got := g.kv.at(key); got != at {
				t.Errorf("%s was sent at %v, want %v", key, got, at)
			}
		}
		if len(g.group.byName) > 0 || g.group.order.Len() > 0 {
			t.Errorf("%d names are kept", len(g.group.byName))
		}
	})
}

func TestShared_WhatIsTooMuchIsSplitAndKeepsItsOrder(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		var keys []string
		for i := range 2*MaxTogether + 7 {
			keys = append(keys, fmt.Sprintf("a%d", i))
		}
		g.share("X " + strings.Join(keys, " "))
		g.at(moment / 2)
		g.share("b1 A9")
		g.at(time.Second)
		g.sent(sent{0, "X"},
			sent{moment, strings.Join(keys[:MaxTogether], " ")},
			sent{2 * moment, strings.Join(append([]string{"b1"}, keys[MaxTogether:2*MaxTogether-1]...), " ")}, // others come first
			sent{3 * moment, strings.Join(keys[2*MaxTogether-1:], " ")},
			sent{4 * moment, "A9"})
	})
}

func TestShared_WhatIsForgottenIsLeftOut(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		all := g.share("X a1 a2 a3 A4 b1 b2")
		for _, i := range []int{1, 3, 4, 5, 6} {
			if err := g.Forget(&all[i].Write); err != ErrUnsent {
				t.Errorf("Forget of %s returns %v", all[i].key(), err)
			}
		}
		g.at(time.Second)
		g.sent(sent{0, "X"}, sent{moment, "a2"})
		if n := g.Waiting(); n > 0 || len(g.group.byName) > 0 {
			t.Errorf("%d writes are waiting, %d names are kept", n, len(g.group.byName))
		}
	})
}

// sorted sorts the keys of each transaction: shared writes have no order among themselves.
func sorted(transactions []string) []string {
	for i, keys := range transactions {
		all := strings.Fields(keys)
		slices.Sort(all)
		transactions[i] = strings.Join(all, " ")
	}
	return transactions
}

func TestShared_WhatIsRefusedTogetherGathersAgainBeforeLaterOnes(t *testing.T) {
	script := func(n int, _ string) []error {
		if n == 1 {
			return []error{errNotThen}
		}
		return []error{nil}
	}
	inGroup(t, script, func(t *testing.T, g *grouped) {
		all := g.share("X a1 a2 b1 A3")
		g.at(time.Second)
		g.idle()
		if got := sorted(g.keys()); !slices.Equal(got, []string{"X", "a1 a2 b1", "a1 a2 b1", "A3"}) {
			t.Errorf("sent %q", got)
		}
		for _, w := range all {
			w.is(t, nil, true)
		}
	})
}

// As with a single write, the next of the name does not wait for that, but the one after it does.
func TestShared_WhatFailsTogetherIsTriedAgainTogether(t *testing.T) {
	inGroup(t, times(nil, errPassing), func(t *testing.T, g *grouped) {
		all := g.share("X a1 a2 A3 A4")
		g.at(time.Minute)
		g.idle()
		for i, w := range all {
			w.is(t, nil, i != 1 && i != 2)
		}
		if got := sorted(g.keys()); !slices.Equal(got, []string{"X", "a1 a2", "A3", "a1 a2", "A4"}) {
			t.Errorf("sent %q", got)
		}
	})
}

// A write to several queues has no name.
func TestGroup_WhatWritesToSeveralQueuesLeavesAtOnceAndAlone(t *testing.T) {
	inGroup(t, nil, func(t *testing.T, g *grouped) {
		g.share("X a1 b1")
		several := Txn{Shared: true, When: []*pb.Compare{CmpCreate("a2", 0), CmpCreate("b2", 0)}}
		for _, key := range []string{"a2", "b2"} {
			several.Then = append(several.Then, OpTxn(&pb.TxnRequest{Success: []*pb.RequestOp{OpPut(key, "", 0), OpPut(key+"'", "", 0)}}))
		}
		w := &followed{Write: Write{Txn: several}}
		g.at(moment / 2)
		for range 2 {
			g.submitTxn(several)
		}
		g.group.start(g.group.submit(&w.Write))
		g.at(time.Second)
		alone := sent{moment / 2, "a2 a2' b2 b2'"}
		g.sent(sent{0, "X"}, alone, alone, alone, sent{moment, "a1 b1"})
		if parts := w.result.Resp.Responses; len(parts) != 2 || len(parts[1].GetResponseTxn().GetResponses()) != 2 {
			t.Errorf("it was answered with %v", parts)
		}
		if request := g.kv.requests[1]; len(request.Compare) != 2 {
			t.Errorf("sent %v", request)
		}
	})
}

func TestTxn_SizeCountsNestedPuts(t *testing.T) {
	t.Parallel()
	put := []*pb.RequestOp{OpPut("k", strings.Repeat("v", 1000), 0)}
	several := Txn{Then: []*pb.RequestOp{OpTxn(&pb.TxnRequest{Success: put}), OpTxn(&pb.TxnRequest{Success: put})}}
	if n := several.size(); n < 2000 {
		t.Errorf("two values of 1000 bytes count as %d", n)
	}
}
