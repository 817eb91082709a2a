//go:build unix

package etcdproc

import (
	"context"
	"testing"
	"time"
)

func TestMember_TakesNoAnswerOfAnotherClusterForItsOwn(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	program, err := Build(ctx, "v3.7.3", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	var members []*Member
	for range 2 {
		cluster, err := Start(ctx, Options{Program: program})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(cluster.Close)
		members = append(members, cluster.Member(0))
	}
	own, other := members[0], members[1]
	if !own.healthy(ctx) {
		t.Error("its own answer was rejected")
	}
	if (&Member{peer: own.peer, metrics: other.metrics}).healthy(ctx) {
		t.Error("the answer of another cluster was accepted")
	}
}
