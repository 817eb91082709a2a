package locker

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/txn"
)

// A Holder is who holds a name, and with what value.
type Holder struct {
	Name, Value string
	Token       int64            // fencing token, see Lock.Token
	Lease       clientv3.LeaseID // 0 for an entry that somebody made without a lease
	Limit       int              // so many may hold the name while it does: 1 if it is exclusive, 0 if it is shared
}

// Get returns the holder of name, the oldest one if there are several. The read is
// linearizable: it sees every lock and every release that was confirmed before the call. Get
// blocks until etcd has answered, or ctx ends.
//
// Errors: ErrNotFound as *NotFoundError if nobody holds the name; ErrInvalid for a bad name
// or a nil context; ErrClosed; ErrEtcdClosed; the cause of ctx; and etcd's own.
func (c *Client) Get(ctx context.Context, name string) (Holder, error) {
	const op = "get"
	if err := checkName(name); err != nil {
		return Holder{}, wrap(op, name, err)
	}
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return Holder{}, wrap(op, name, err)
	}
	defer end()
	oldest, err := c.oldest(ctx, name)
	if err != nil {
		return Holder{}, wrap(op, name, err)
	}
	return holderOf(c.keys, name, oldest), nil
}

// Holders returns all holders of name, the oldest first, all as of one revision. There are
// several only if they have locked it with WithShared or WithLimit. The read is linearizable.
// Holders blocks until etcd has answered, or ctx ends.
//
// Errors: as for Get.
func (c *Client) Holders(ctx context.Context, name string) ([]Holder, error) {
	const op = "holders of"
	if err := checkName(name); err != nil {
		return nil, wrap(op, name, err)
	}
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, name, err)
	}
	defer end()
	resp, err := c.store.ReadAll(ctx, c.keys.Queue(name))
	if err != nil {
		return nil, wrap(op, name, err)
	}
	q := queueView{keys: c.keys}
	q.load(resp, "")
	holders := q.holders(name)
	if len(holders) == 0 {
		return nil, wrap(op, name, &NotFoundError{Name: name})
	}
	return holders, nil
}

// List returns the holders of all names that begin with prefix, sorted by name, then by
// token, all as of one revision. An empty prefix means all names. The read is linearizable. List blocks
// until etcd has answered, or ctx ends.
//
// Errors: ErrInvalid for a nil context; ErrClosed; ErrEtcdClosed; the cause of ctx; and
// etcd's own.
func (c *Client) List(ctx context.Context, prefix string) ([]Holder, error) {
	const op = "list"
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, prefix, err)
	}
	defer end()
	resp, err := c.store.ReadAll(ctx, c.keys.Below(prefix))
	if err != nil {
		return nil, wrap(op, prefix, err)
	}
	q := queueView{keys: c.keys}
	holders := []Holder{}
	for _, state := range q.load(resp, "") {
		holders = append(holders, q.holders(state.Name)...)
	}
	return holders, nil
}

// Owners returns which process each session belongs to, by lease. Together with List it
// shows which process holds what. Clients of the same prefix write one record for each
// session; entries that others have made, such as those of etcdctl, have no owner here. The
// read is linearizable. Owners blocks until etcd has answered, or ctx ends.
//
// Errors: ErrInvalid for a nil context; ErrClosed; ErrEtcdClosed; the cause of ctx; and
// etcd's own.
func (c *Client) Owners(ctx context.Context) (map[clientv3.LeaseID]Owner, error) {
	const op = "owners"
	ctx, end, err := c.begin(ctx)
	if err != nil {
		return nil, wrap(op, "", err)
	}
	defer end()
	resp, err := c.store.ReadAll(ctx, c.keys.Records())
	if err != nil {
		return nil, wrap(op, "", err)
	}
	owners := make(map[clientv3.LeaseID]Owner, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		if owner, ok := ownerOf(kv); ok { // anything else that others have put there is no owner
			owners[clientv3.LeaseID(kv.Lease)] = owner
		}
	}
	return owners, nil
}

// oldest returns the oldest entry in the queue of name.
func (c *Client) oldest(ctx context.Context, name string) (*mvccpb.KeyValue, error) {
	all := c.keys.All(name)
	resp, err := c.store.Read(ctx, txn.Oldest(all.From, all.To))
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, &NotFoundError{Name: name}
	}
	return resp.Kvs[0], nil
}

// holderOf returns a holder of name, given its entry.
func holderOf(keys key.Space, name string, kv *mvccpb.KeyValue) Holder {
	return Holder{
		Name:  name,
		Value: string(kv.Value),
		Token: kv.CreateRevision,
		Lease: clientv3.LeaseID(kv.Lease),
		Limit: int(keys.KindOf(string(kv.Key))),
	}
}
