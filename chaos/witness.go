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

// witness sees all that happens in etcd, by one watch from the first revision, and keeps it in a file.
// It also asks for the revision again and again, which tells when a revision was not there yet.
type witness struct {
	etcd *clientv3.Client
	stop context.CancelFunc
	wg   sync.WaitGroup
	seen atomic.Int64 // the revision up to which it has seen everything

	mu    sync.Mutex // guards what follows
	ticks []tick
	err   error
}

// tickInterval is how exactly the time of a revision is known.
const tickInterval = 20 * time.Millisecond

// newWitness starts to watch. The caller must call end.
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
	w.wg.Go(func() { w.ask(ctx) })
	return w, nil
}

func (w *witness) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = errors.Join(w.err, err)
}

// watch writes each revision as a line.
func (w *witness) watch(ctx context.Context, file *os.File) error {
	out := bufio.NewWriter(file)
	lines := json.NewEncoder(out)
	for answer := range w.etcd.Watch(ctx, everything, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := answer.Err(); err != nil {
			return fmt.Errorf("watch of the truth: %w", err)
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
		return errors.New("the watch of the truth ended")
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

// ask keeps the answers that tell something: the last before a revision, and the first with it.
func (w *witness) ask(ctx context.Context) {
	pause := time.NewTicker(tickInterval)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		sent := now()
		asked, cancel := context.WithTimeout(ctx, time.Second)
		resp, err := w.etcd.Get(asked, everything, clientv3.WithCountOnly())
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

// catchUp waits until the watch has told everything up to now, which a change marks.
func (w *witness) catchUp(ctx context.Context) error {
	resp, err := w.etcd.Put(ctx, everything+"mark", "")
	if err != nil {
		return fmt.Errorf("mark the end of the truth: %w", err)
	}
	for w.seen.Load() < resp.Header.Revision {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of the truth: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// end stops the witness, joins it, and returns the answers to its questions.
func (w *witness) end() ([]tick, error) {
	w.stop()
	w.wg.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ticks, w.err
}
