package locker

import (
	"cmp"
	"context"
	"iter"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/jagregory/locker/v2/internal/key"
	"github.com/jagregory/locker/v2/internal/line"
	"github.com/jagregory/locker/v2/internal/txn"
)

// entry is what a Lock has in the queue of one of its names.
type entry struct {
	place line.Place[*Lock] // in the client's line; its number is that of the key

	// Guarded by the mutex of the Lock. The value changes only while the lock is held.
	value    string
	modified int64     // mod revision at which the entry had value
	position *position // nil if it is not known, or the lock is held
}

// kind returns the kind of the entry.
func (e *entry) kind() key.Kind { return key.Kind(e.place.Kind) }

// position is where in its queue an entry was when it was put.
type position struct {
	ahead []string // the keys ahead that it waits for, as in a view
	total int64    // how many there were, others included
}

// alone is the position of an entry that holds.
var alone position

// key returns the key of an entry. The lock must have been admitted to a session.
func (l *Lock) key(e *entry) string {
	return l.client.keys.Entry(e.place.Name, l.session.member, e.kind(), int(e.place.Number))
}

// keys returns the keys of all entries.
func (l *Lock) keys() []string {
	keys := make([]string, len(l.entries))
	for i := range l.entries {
		keys[i] = l.key(&l.entries[i])
	}
	return keys
}

// queue returns the prefix of the keys of the queue that an entry is in.
func (l *Lock) queue(e *entry) string { return l.client.keys.Queue(e.place.Name) }

// joining returns the transaction that puts the entries at the end of their queues, and
// reads what is ahead of them. In a flat transaction it puts the entry only if it holds then,
// and so has nothing to read, unless somebody has waited for the name lately: then it is
// probably not free.
func (l *Lock) joining() txn.Txn {
	keys := l.keys()
	t := l.writes(
		l.each(keys, l.putAndRead),
		l.each(keys, func(_ *entry, k string) []*pb.RequestOp { return ops(txn.RevisionsOf(k)) }))
	for _, k := range keys {
		t.When = append(t.When, txn.CmpCreate(k, 0))
	}
	if first := &l.entries[0]; len(l.entries) == 1 && first.kind() <= key.Exclusive && !l.client.watches.Keeps(l.queue(first)) {
		t.Flat = &txn.Flat{When: l.vacant(first, keys[0], 0), Then: t.Then[:1]}
	}
	return t
}

// taking returns the transaction that puts the entries if all of them hold then, given that
// this was so at the revision read, if that is not 0; otherwise it reads why not. Those ahead
// of an entry that is limited to more than one cannot be counted by compares.
func (l *Lock) taking(read int64) txn.Txn {
	keys := l.keys()
	puts := l.each(keys, func(e *entry, k string) []*pb.RequestOp { return []*pb.RequestOp{l.put(e, k)} })
	t := l.writes(puts, l.each(keys, func(e *entry, k string) []*pb.RequestOp {
		reads := ops(txn.RevisionsOf(k), l.oldest(e))
		if e.kind() != key.Exclusive { // otherwise, whatever is ahead is in the way
			reads = append(reads, ops(l.reads(e, k, 0)...)...)
		}
		return reads
	}))
	for i, k := range keys {
		t.When = append(t.When, l.vacant(&l.entries[i], k, read)...)
	}
	return t
}

// removal returns the transaction that deletes the entries. If one of them is gone already,
// that is what the answer says, and the others are deleted nevertheless.
func (l *Lock) removal() txn.Txn {
	keys := l.keys()
	t := txn.Txn{When: l.standing(keys)}
	t.Name, t.Shared = l.group()
	for _, k := range keys {
		t.Then = append(t.Then, txn.OpDelete(k))
	}
	if len(l.entries) > 1 {
		for i, op := range t.Then {
			t.Otherwise = append(t.Otherwise, txn.OpTxn(&pb.TxnRequest{Compare: t.When[i : i+1], Success: []*pb.RequestOp{op}}))
		}
	}
	return t
}

// writes returns a transaction that writes to the queues of the lock. If it is refused, it
// reads the session's record first. What writes to several queues is sent alone.
func (l *Lock) writes(then, otherwise []*pb.RequestOp) txn.Txn {
	t := txn.Txn{Then: then, Otherwise: append(ops(txn.RevisionsOf(l.session.record())), otherwise...)}
	t.Name, t.Shared = l.group()
	return t
}

// group returns with which other writes one of the lock may share a transaction.
func (l *Lock) group() (name string, shared bool) {
	if len(l.entries) > 1 {
		return "", false
	}
	return l.name(), l.entries[0].kind() == key.Shared
}

// each returns operations for each of the entries, given their keys. Those of a single one
// stay as they are. Several go into a transaction each, because etcd limits the operations on
// one level.
func (l *Lock) each(keys []string, operations func(e *entry, k string) []*pb.RequestOp) (all []*pb.RequestOp) {
	if len(l.entries) == 1 {
		return operations(&l.entries[0], keys[0])
	}
	for i, k := range keys {
		all = append(all, txn.OpTxn(&pb.TxnRequest{Success: operations(&l.entries[i], k)}))
	}
	return all
}

// part returns those of the responses to the operations of each that are about the i-th
// entry.
func (l *Lock) part(responses []*pb.ResponseOp, i int) []*pb.ResponseOp {
	if len(l.entries) == 1 {
		return responses
	}
	return responses[i].GetResponseTxn().GetResponses()
}

// ops makes reads parts of a transaction.
func ops(reads ...*pb.RangeRequest) []*pb.RequestOp {
	all := make([]*pb.RequestOp, len(reads))
	for i, read := range reads {
		all[i] = txn.OpRange(read)
	}
	return all
}

// put returns the put of an entry under its key.
func (l *Lock) put(e *entry, k string) *pb.RequestOp { return txn.OpPut(k, e.value, l.session.lease) }

// putAndRead returns the put of an entry, and the reads that show what is ahead of it.
func (l *Lock) putAndRead(e *entry, k string) []*pb.RequestOp {
	return append([]*pb.RequestOp{l.put(e, k)}, ops(l.reads(e, k, 0)...)...)
}

// vacant returns compares that are true only if an entry that is put now holds, and was not
// put by an earlier attempt. Some kinds need to have read the queue for that, at the revision
// read: if the entry would have held then, it does so while nothing has been put since. (0
// stands for an empty queue.) So there is one compare for each of several names, as many as
// fit into a transaction.
func (l *Lock) vacant(e *entry, k string, read int64) (compares []*pb.Compare) {
	all := l.client.keys.All(e.place.Name)
	switch {
	case e.kind() == key.Exclusive:
		return append(compares, txn.CmpNone(all.From, all.To))
	case e.kind() != key.Shared || len(l.entries) > 1:
		return append(compares, txn.CmpNoneSince(all.From, all.To, read))
	}
	for _, r := range l.client.keys.Unshared(e.place.Name) {
		compares = append(compares, txn.CmpNone(r.From, r.To))
	}
	return append(compares, txn.CmpCreate(k, 0))
}

// standing is Guard as messages of etcd, given the keys of the entries.
func (l *Lock) standing(keys []string) []*pb.Compare {
	compares := make([]*pb.Compare, len(keys))
	for i, k := range keys {
		compares[i] = txn.CmpCreate(k, l.token.Load())
	}
	return compares
}

// oldest returns a read of the oldest entry in the queue of an entry.
func (l *Lock) oldest(e *entry) *pb.RangeRequest {
	all := l.client.keys.All(e.place.Name)
	return txn.Oldest(all.From, all.To)
}

// reads returns reads of what an entry waits for: of the entry itself and then, the newest
// first, of those ahead. A shared one waits for those that are not shared, one after the
// other. If revision is not 0, nothing is read that is newer.
func (l *Lock) reads(e *entry, k string, revision int64) (reads []*pb.RangeRequest) {
	if e.kind() != key.Shared {
		all := l.client.keys.All(e.place.Name)
		return append(reads, txn.Newest(all.From, all.To, 1+e.sight(), revision))
	}
	reads = append(reads, txn.RevisionsOf(k))
	for _, r := range l.client.keys.Unshared(e.place.Name) {
		reads = append(reads, txn.Newest(r.From, r.To, 1, revision))
	}
	return reads
}

// found evaluates the reads of the own entries in the answer to a refused put. created is the
// create revision of entries that the same put has made before; strays were there before it.
func (l *Lock) found(resp *pb.TxnResponse) (created int64, strays []stray) {
	for i := range l.entries {
		for _, kv := range l.part(resp.Responses[1:], i)[0].GetResponseRange().Kvs {
			if kv.CreateRevision > l.since {
				created = max(created, kv.CreateRevision)
			} else {
				strays = append(strays, stray{l.entries[i].place.Name, string(kv.Key), kv.CreateRevision})
			}
		}
	}
	return created, strays
}

// refusal returns the error of TryLock if, by what taking has read, one of the entries would
// not hold.
func (l *Lock) refusal(ctx context.Context, resp *pb.TxnResponse) error {
	for i := range l.entries {
		e, read := &l.entries[i], l.part(resp.Responses[1:], i)
		oldest := read[1].GetResponseRange().Kvs
		ahead, _ := newestFirst(read[2:])
		if len(oldest) > 0 && (e.kind() == key.Exclusive || !free(e.kind(), l.kinds(ahead))) {
			return l.client.locked(ctx, e.place.Name, oldest[0])
		}
	}
	return nil
}

// predecessors returns the keys that are ahead, the nearest first, given what the reads of an
// entry have returned. ok is false if the entry itself is not there.
func (l *Lock) predecessors(own string, reads []*pb.ResponseOp, token int64) (ahead []string, ok bool) {
	keys, created := newestFirst(reads)
	if len(keys) == 0 || keys[0] != own || created != token {
		return nil, false
	}
	return keys[1:], true
}

// newestFirst returns the keys that reads have returned, the newest first, and the create
// revision of that one.
func newestFirst(reads []*pb.ResponseOp) (keys []string, newest int64) {
	var kvs []*mvccpb.KeyValue
	for _, read := range reads {
		kvs = append(kvs, read.GetResponseRange().Kvs...)
	}
	slices.SortStableFunc(kvs, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(b.CreateRevision, a.CreateRevision) })
	for _, kv := range kvs {
		keys = append(keys, string(kv.Key))
	}
	if len(kvs) > 0 {
		newest = kvs[0].CreateRevision
	}
	return keys, newest
}

// count returns how many keys there are in what was read, those that were left out included.
func count(reads []*pb.ResponseOp) (n int64) {
	for _, read := range reads {
		n += read.GetResponseRange().Count
	}
	return n
}

// kinds returns the kinds of entries, given their keys.
func (l *Lock) kinds(keys []string) iter.Seq[key.Kind] {
	return func(yield func(key.Kind) bool) {
		for _, k := range keys {
			if !yield(l.client.keys.KindOf(k)) {
				return
			}
		}
	}
}

// created reads the create revisions of keys, 0 for one that does not exist, at a revision
// now that is not before since, if that is not 0.
func (l *Lock) created(ctx context.Context, keys []string, since int64) (revisions []int64, now int64, err error) {
	resp, err := l.client.store.ReadSince(ctx, since, func() (reads []*pb.RangeRequest) {
		for _, k := range keys {
			reads = append(reads, txn.RevisionsOf(k))
		}
		return reads
	})
	if err != nil {
		return nil, 0, err
	}
	revisions = make([]int64, len(keys))
	for i := range keys {
		if kvs := txn.Found(resp, i); len(kvs) > 0 {
			revisions[i] = kvs[0].CreateRevision
		}
	}
	return revisions, resp.Header.Revision, nil
}
