package locker

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// A Cache keeps in memory who holds the names below a prefix, by means of one watch: reads
// cost no request. All methods are safe for concurrent use, and none but Close blocks.
type Cache struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.RWMutex        // guards what follows
	holders  map[string][]Holder // the oldest first
	revision int64
	changed  chan struct{} // closed at the next change to holders
	current  time.Time     // when the copy was last known to be current
}

// NewCache starts a Cache of all names that begin with prefix; an empty prefix means all
// names. It blocks until the cache is filled, or ctx ends; ctx bounds nothing else. The
// cache lives until it or the Client is closed. Should etcd refuse later on, for example
// because a permission was taken away, the cache stays as it is and its Age grows until
// etcd accepts again.
//
// Errors: ErrInvalid for a nil context; the cause of ctx, with the last error from etcd;
// ErrClosed; ErrEtcdClosed; and etcd's own. There is no Cache then, and nothing to close.
func (c *Client) NewCache(ctx context.Context, prefix string) (*Cache, error) {
	const op = "new cache"
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, prefix, err)
	}
	defer end()
	followCtx, cancel := context.WithCancelCause(c.ctx)
	k := &Cache{cancel: func() { cancel(nil) }, done: make(chan struct{}), holders: make(map[string][]Holder), changed: make(chan struct{})}
	filled := make(chan struct{})
	fill := sync.OnceFunc(func() { close(filled) })
	var refused error // set before done is closed
	c.tasks.Run(func() {
		defer close(k.done)
		f := follower{client: c, below: c.keys.Below(prefix), stays: true, progress: true}
		refused = f.run(followCtx, func(sent time.Time, revision int64, queues *queueView, changed []State) {
			k.update(sent, revision, queues, changed, c.watches.Current)
			fill()
		})
	})
	select {
	case <-filled:
		return k, nil
	case <-ctx.Done():
		cancel(context.Cause(ctx))
	case <-k.done:
	}
	k.Close()
	return nil, wrap(op, prefix, refused)
}

// update takes in what the follower has found. current returns when the cluster was last
// known to be at a revision or before it, which is when a copy with that revision was
// current.
func (k *Cache) update(sent time.Time, revision int64, queues *queueView, changed []State, current func(revision int64) time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	differs := false
	for _, state := range changed {
		holders := queues.holders(state.Name)
		differs = differs || !slices.Equal(holders, k.holders[state.Name])
		if len(holders) > 0 {
			k.holders[state.Name] = holders
		} else {
			delete(k.holders, state.Name)
		}
	}
	if differs {
		close(k.changed)
		k.changed = make(chan struct{})
	}
	if read := !sent.IsZero(); read {
		k.revision = revision // even if it is smaller: then etcd has come back empty or from a backup
	} else {
		k.revision = max(k.revision, revision)
	}
	for _, at := range []time.Time{sent, current(k.revision)} {
		if at.After(k.current) {
			k.current = at
		}
	}
}

// Get returns the holder of name, the oldest one if there are several, and false if nobody
// holds it. It does not block, makes no request and does not allocate. The answer is as old as
// Age reports.
func (k *Cache) Get(name string) (Holder, bool) {
	k = k.orZero()
	k.mu.RLock()
	defer k.mu.RUnlock()
	if holders := k.holders[name]; len(holders) > 0 {
		return holders[0], true
	}
	return Holder{}, false
}

// Holders returns all holders of name, the oldest first, as of one revision; none if nobody
// holds it. It does not block and makes no request. The answer is as old as Age reports.
func (k *Cache) Holders(name string) []Holder {
	k = k.orZero()
	k.mu.RLock()
	defer k.mu.RUnlock()
	return slices.Clone(k.holders[name])
}

// List returns all holders, sorted by name, then by token, as of one revision.
func (k *Cache) List() []Holder {
	k = k.orZero()
	k.mu.RLock()
	all := make([]Holder, 0, len(k.holders))
	for _, holders := range k.holders {
		all = append(all, holders...)
	}
	k.mu.RUnlock()
	slices.SortStableFunc(all, func(a, b Holder) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Token, b.Token))
	})
	return all
}

// Revision returns the revision of etcd that the copy has reached. It becomes smaller only
// if etcd comes back empty or from a backup.
func (k *Cache) Revision() int64 {
	k = k.orZero()
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.revision
}

// Changed returns a channel that is closed when Get and List would return something else
// than now. Call it before Get or List, and no change is missed:
//
//	for {
//		changed := cache.Changed()
//		use(cache.List())
//		select {
//		case <-changed:
//		case <-ctx.Done():
//			return
//		}
//	}
func (k *Cache) Changed() <-chan struct{} {
	k = k.orZero()
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.changed
}

// Age returns how long ago the copy was last known to be current. While etcd answers it
// stays below 3 s, even when one member does not answer. It grows while etcd cannot be
// reached, while the machine sleeps, and after Close.
func (k *Cache) Age() time.Duration {
	k = k.orZero()
	k.mu.RLock()
	defer k.mu.RUnlock()
	// On both clocks: the monotonic one may have stood still while the machine slept.
	now := time.Now()
	return max(now.Sub(k.current), now.Round(0).Sub(k.current.Round(0)))
}

// Close ends the watch and blocks until its goroutine has ended. What was read last can
// still be read. Close is idempotent.
func (k *Cache) Close() {
	if k == nil || k.cancel == nil {
		return // it is the zero Cache, which watches nothing
	}
	k.cancel()
	<-k.done
}

// orZero returns k, or the zero Cache for nil, which knows nothing and has never been
// current.
func (k *Cache) orZero() *Cache {
	if k == nil {
		return new(Cache)
	}
	return k
}
