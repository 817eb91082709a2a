package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// witness records everything that happens in etcd, by one watch from the first revision, in
// a file. It also polls the revision, which shows when a revision did not exist yet.
type witness struct {
	etcd *clientv3.Client
	stop context.CancelFunc
	wg   sync.WaitGroup
	seen atomic.Int64 // the revision up to which it has seen everything

	mu    sync.Mutex // guards what follows
	ticks []tick
	err   error
}

// tickInterval is the interval of polls, and so the precision of the times of revisions.
const tickInterval = 20 * time.Millisecond

// newWitness starts the witness. The caller must call end.
func newWitness(etcd *clientv3.Client, path string) (*witness, error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	w := &witness{etcd: etcd}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.wg.Go(func() {
		w.fail(errors.Join(w.watch(ctx, file), file.Close()))
	})
	w.wg.Go(func() { w.pollRevision(ctx) })
	return w, nil
}

func (w *witness) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

// watch writes a line for each revision.
func (w *witness) watch(ctx context.Context, file *os.File) error {
	out := bufio.NewWriter(file)
	lines := json.NewEncoder(out)
	for answer := range w.etcd.Watch(ctx, rootPrefix, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := answer.Err(); err != nil {
			return fmt.Errorf("watch etcd: %w", err)
		}
		at := now()
		for events := answer.Events; len(events) > 0; {
			c := change{Revision: events[0].Kv.ModRevision, At: at}
			for len(events) > 0 && events[0].Kv.ModRevision == c.Revision {
				c.Events = append(c.Events, eventOf(events[0]))
				events = events[1:]
			}
			if err := lines.Encode(c); err != nil {
				return err
			}
			w.seen.Store(c.Revision)
		}
	}
	if ctx.Err() == nil {
		return errors.New("the watch of etcd ended")
	}
	return out.Flush()
}

func eventOf(ev *clientv3.Event) event {
	e := event{Key: string(ev.Kv.Key), Deleted: ev.Type == clientv3.EventTypeDelete}
	if !e.Deleted && !strings.HasPrefix(e.Key, fillPrefix) {
		e.Created, e.Lease, e.Value = ev.Kv.CreateRevision, ev.Kv.Lease, string(ev.Kv.Value)
	}
	return e
}

// pollRevision keeps, of the answers with the same revision, only the first and the last.
func (w *witness) pollRevision(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		sent := now()
		asking, cancel := context.WithTimeout(ctx, time.Second)
		resp, err := w.etcd.Get(asking, rootPrefix, clientv3.WithCountOnly())
		cancel()
		if err != nil {
			continue
		}
		next := tick{sent, now(), resp.Header.Revision}
		w.mu.Lock()
		if n := len(w.ticks); n > 1 && w.ticks[n-1].Revision == next.Revision && w.ticks[n-2].Revision == next.Revision {
			w.ticks[n-1] = next
		} else {
			w.ticks = append(w.ticks, next)
		}
		w.mu.Unlock()
	}
}

// catchUp writes a mark and waits until the watch has reported it.
func (w *witness) catchUp(ctx context.Context) error {
	resp, err := w.etcd.Put(ctx, rootPrefix+"mark", "")
	if err != nil {
		return fmt.Errorf("write the mark: %w", err)
	}
	for w.seen.Load() < resp.Header.Revision {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the watch to report the mark: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// end stops the witness, waits for it, and returns the ticks.
func (w *witness) end() ([]tick, error) {
	w.stop()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ticks, w.err
}
