package locker

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/connectivity"

	"github.com/jagregory/locker/v2/internal/txn"
)

// An Entry is somebody in the queue of a name: a holder, or a waiter.
type Entry struct {
	Holder
	Key   string // of etcd
	Held  bool   // it holds; otherwise it waits
	Owner Owner  // whose session it is; zero if it is not a Locker's
}

// Queue returns everybody in the queue of name, the oldest first, all as of one revision; none
// if nobody is there. The read is linearizable. Queue blocks until etcd has answered, or ctx
// ends.
//
// Errors: ErrInvalid for a bad name or a nil context; ErrClosed; ErrEtcdClosed; the cause of
// ctx; and etcd's own.
func (c *Client) Queue(ctx context.Context, name string) ([]Entry, error) {
	const op = "queue of"
	if err := c.usable(); err != nil {
		return nil, wrap(op, name, err)
	}
	if err := checkName(name); err != nil {
		return nil, wrap(op, name, err)
	}
	entries, err := c.entries(ctx, c.keys.Queue(name))
	return entries, wrap(op, name, err)
}

// Queues returns everybody in the queues of all names that begin with prefix, by name, then
// by age, all as of one revision. An empty prefix means all names. The read is linearizable,
// and is made page by page. Queues blocks until etcd has answered, or ctx ends.
//
// Errors: as for Queue, but no name is invalid.
func (c *Client) Queues(ctx context.Context, prefix string) ([]Entry, error) {
	const op = "queues of"
	if err := c.usable(); err != nil {
		return nil, wrap(op, prefix, err)
	}
	entries, err := c.entries(ctx, c.keys.Below(prefix))
	return entries, wrap(op, prefix, err)
}

// ForceUnlock removes the entry with that token from the queue of name, whoever holds the name
// or waits for it with that entry, and nothing else; shared entries that one transaction has
// put have the same token, and all of them are removed. It returns what it has removed. The
// owner learns of it within a third of its TTL, as a loss with reason Deleted; its guarded
// writes are refused at once, but whatever else it does under the lock may go on until then.
// If it has locked other names together with this one, it loses them as well.
//
// ForceUnlock blocks until etcd has confirmed it, or ctx ends. After an error other than
// ErrNotFound and ErrInvalid the entry may have been removed.
//
// Errors: ErrNotFound as *NotFoundError if there is no such entry; ErrInvalid for a bad name, a
// token below 1 or a nil context; ErrClosed; ErrEtcdClosed; the cause of ctx; and etcd's own.
func (c *Client) ForceUnlock(ctx context.Context, name string, token int64) ([]Entry, error) {
	const op = "force unlock"
	if token < 1 {
		return nil, wrap(op, name, &InvalidError{"token", strconv.FormatInt(token, 10), "tokens begin with 1"})
	}
	queue, err := c.Queue(ctx, name)
	if err != nil {
		return nil, wrap(op, name, errors.Unwrap(err))
	}
	entries := slices.DeleteFunc(queue, func(e Entry) bool { return e.Token != token })
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, name, err)
	}
	defer end()
	var removed []Entry
	for _, e := range entries {
		resp, only, err := c.store.Commit(ctx, stray{name, e.Key, token}.removal())
		if err != nil {
			return removed, wrap(op, name, err)
		}
		if resp.Succeeded || !only { // perhaps by an attempt whose answer was lost
			removed = append(removed, e)
		}
	}
	if len(removed) == 0 {
		return nil, wrap(op, name, &NotFoundError{Name: name, Token: token})
	}
	c.log.Warn("entry removed by force", "name", name, "token", token, "held", removed[0].Held, "entries", len(removed))
	return removed, nil
}

// entries returns what is in the queues below a key of etcd. If what was read is compacted
// before the owners are, it starts over.
func (c *Client) entries(ctx context.Context, below string) ([]Entry, error) {
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	for {
		resp, err := c.store.ReadAll(ctx, below)
		if err != nil {
			return nil, err
		}
		q := queueView{keys: c.keys}
		q.load(resp, "")
		entries := q.entries()
		err = c.addOwners(ctx, entries, resp.Header.Revision)
		if !errors.Is(err, rpctypes.ErrCompacted) && !errors.Is(err, rpctypes.ErrFutureRev) {
			return entries, err
		}
	}
}

// entries returns everybody in the queues, by name, then by age.
func (q *queueView) entries() []Entry {
	entries := []Entry{}
	for _, name := range slices.Sorted(maps.Keys(q.queues)) {
		held := len(q.head(q.queues[name]))
		for i, kv := range q.queues[name] {
			entries = append(entries, Entry{Holder: holderOf(q.keys, name, kv), Key: string(kv.Key), Held: i < held})
		}
	}
	return entries
}

// addOwners sets the owners of entries, as of a revision.
func (c *Client) addOwners(ctx context.Context, entries []Entry, revision int64) error {
	owners := make(map[string]Owner)
	for _, e := range entries {
		owners[c.keys.Record(c.keys.Member(e.Key))] = Owner{}
	}
	var records []string
	for record := range owners {
		records = append(records, record)
	}
	err := inBatches(records, func(batch []string) error {
		resp, err := c.store.ReadSince(ctx, 0, func() (reads []*pb.RangeRequest) {
			for _, record := range batch {
				read := txn.Get(record)
				read.Revision = revision
				reads = append(reads, read)
			}
			return reads
		})
		if err != nil {
			return err
		}
		for i, record := range batch {
			for _, kv := range txn.Found(resp, i) {
				owners[record], _ = ownerOf(kv)
			}
		}
		return nil
	})
	for i := range entries {
		entries[i].Owner = owners[c.keys.Record(c.keys.Member(entries[i].Key))]
	}
	return err
}

// ownerOf returns the owner that a record names, and false if it does not look like a record.
func ownerOf(record *mvccpb.KeyValue) (owner Owner, ok bool) {
	if json.Unmarshal(record.Value, &owner) != nil {
		return Owner{}, false
	}
	return owner, true
}

// locked returns the error that an entry is in the way of a lock. It names the owner if etcd
// answers at once.
func (c *Client) locked(ctx context.Context, name string, kv *mvccpb.KeyValue) *LockedError {
	locked := &LockedError{Holder: holderOf(c.keys, name, kv)}
	record := c.keys.Record(c.keys.Member(string(kv.Key)))
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := c.store.KV.Range(ctx, txn.Get(record), txn.CallOptions...)
	if err == nil && len(resp.Kvs) > 0 {
		locked.Owner, _ = ownerOf(resp.Kvs[0])
	}
	return locked
}

const (
	// mostAsking bounds how many calls ask at a time who was in their way.
	mostAsking = 8
	// askTimeout is the most time that such a call takes.
	askTimeout = 25 * time.Millisecond
)

// inTheWay adds to the error of a wait who was in the way, as a *LockedError, if its caller has
// ended it and etcd answers within askTimeout. Many waits may end together, and only some of
// them ask.
func (l *Lock) inTheWay(ctx context.Context, err error) error {
	c := l.client
	if ctx.Err() == nil || c.etcd.ActiveConnection().GetState() != connectivity.Ready {
		return err
	}
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	default:
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, askTimeout)
	defer cancel()
	for i := range l.entries {
		resp, failed := c.store.KV.Range(ctx, l.oldest(&l.entries[i]), txn.CallOptions...)
		if failed != nil {
			return err
		}
		if len(resp.Kvs) > 0 && (l.token.Load() == 0 || resp.Kvs[0].CreateRevision != l.token.Load()) {
			return &waitError{err, c.locked(ctx, l.entries[i].place.Name, resp.Kvs[0])}
		}
	}
	return err
}
