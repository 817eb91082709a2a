//go:build unix

package faults

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/key"
)

// readTruth reads from etcd's history who held which name when: the states of each that ever had an
// entry, and of those given, by revision. The first one is that nobody does.
func readTruth(ctx context.Context, etcd *clientv3.Client, names []string) (map[string][]locker.State, error) {
	mark, err := etcd.Put(ctx, "mark", "the history ends here")
	if err != nil {
		return nil, fmt.Errorf("mark the end of the history: %w", err)
	}
	queues, states := make(map[string][]*mvccpb.KeyValue), make(map[string][]locker.State)
	for _, name := range names {
		states[name] = change(nil, name, nil, 0)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	space := key.NewSpace(locker.DefaultPrefix)
	for answer := range etcd.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := answer.Err(); err != nil {
			return nil, fmt.Errorf("read the history: %w", err)
		}
		for i, ev := range answer.Events {
			revision := ev.Kv.ModRevision
			if revision >= mark.Header.Revision {
				return states, nil
			}
			name, isEntry := space.Name(string(ev.Kv.Key))
			if !isEntry {
				continue
			}
			queues[name] = enter(queues[name], ev)
			// What one transaction does is one change.
			if rest := answer.Events[i+1:]; !slices.ContainsFunc(rest, func(next *clientv3.Event) bool {
				other, _ := space.Name(string(next.Kv.Key))
				return next.Kv.ModRevision == revision && other == name
			}) {
				if states[name] == nil {
					states[name] = change(nil, name, nil, 0)
				}
				states[name] = change(states[name], name, queues[name], revision)
			}
		}
	}
	return nil, fmt.Errorf("read the history: %w", context.Cause(ctx))
}

// enter applies an event to a queue, whose oldest entry is the first.
func enter(queue []*mvccpb.KeyValue, ev *clientv3.Event) []*mvccpb.KeyValue {
	queue = slices.DeleteFunc(queue, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == string(ev.Kv.Key) })
	if ev.Type == clientv3.EventTypePut {
		queue = append(queue, ev.Kv)
		slices.SortFunc(queue, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	}
	return queue
}

// change adds the state that a queue stands for, if it is another than before.
func change(states []locker.State, name string, queue []*mvccpb.KeyValue, revision int64) []locker.State {
	state := locker.State{Holder: locker.Holder{Name: name}, Revision: revision}
	if len(queue) > 0 {
		head := queue[0]
		state.Held = true
		state.Holder = locker.Holder{Name: name, Value: string(head.Value), Token: head.CreateRevision, Lease: clientv3.LeaseID(head.Lease)}
	}
	if n := len(states); n > 0 && states[n-1].Holder == state.Holder {
		return states
	}
	return append(states, state)
}
