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

// readHistory reads the history of all names from etcd. It returns the states, in order
// of revision, of the given names and of all others that ever had an entry. The first
// state of each name is that it is free.
func readHistory(ctx context.Context, etcd *clientv3.Client, names []string) (map[string][]locker.State, error) {
	mark, err := etcd.Put(ctx, "mark", "the history ends here")
	if err != nil {
		return nil, fmt.Errorf("mark the end of the history: %w", err)
	}
	queues, states := make(map[string][]*mvccpb.KeyValue), make(map[string][]locker.State)
	for _, name := range names {
		states[name] = appendState(nil, name, nil, 0)
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
			queues[name] = applyEvent(queues[name], ev)
			// A transaction makes one change, however many events it has.
			if rest := answer.Events[i+1:]; !slices.ContainsFunc(rest, func(next *clientv3.Event) bool {
				nextName, _ := space.Name(string(next.Kv.Key))
				return next.Kv.ModRevision == revision && nextName == name
			}) {
				if states[name] == nil {
					states[name] = appendState(nil, name, nil, 0)
				}
				states[name] = appendState(states[name], name, queues[name], revision)
			}
		}
	}
	return nil, fmt.Errorf("read the history: %w", context.Cause(ctx))
}

// applyEvent applies an event to a queue. The first entry of a queue is the oldest.
func applyEvent(queue []*mvccpb.KeyValue, ev *clientv3.Event) []*mvccpb.KeyValue {
	queue = slices.DeleteFunc(queue, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == string(ev.Kv.Key) })
	if ev.Type == clientv3.EventTypePut {
		queue = append(queue, ev.Kv)
		slices.SortFunc(queue, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	}
	return queue
}

// appendState appends the state that a queue represents, if it differs from the last one.
func appendState(states []locker.State, name string, queue []*mvccpb.KeyValue, revision int64) []locker.State {
	state := locker.State{Holder: locker.Holder{Name: name}, Revision: revision}
	if len(queue) > 0 {
		head := queue[0]
		state.Held = true
		state.Holder = locker.Holder{Name: name, Value: string(head.Value), Token: head.CreateRevision, Lease: clientv3.LeaseID(head.Lease), Limit: 1}
	}
	if n := len(states); n > 0 && states[n-1].Holder == state.Holder {
		return states
	}
	return append(states, state)
}
