package locker

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/txn"
)

// An Owner is the process that a session belongs to.
type Owner struct {
	Host    string    `json:"host"` // as os.Hostname reports it; empty if it does not
	PID     int       `json:"pid"`
	Program string    `json:"program"` // of WithProgram; by default the last element of os.Args[0]
	Start   time.Time `json:"start"`   // of the process, roughly
	Version string    `json:"version"` // of this library
}

// Version is the version of this library. Sessions write it into their records.
const Version = "2.0.0"

// processStart is roughly when the process has started.
var processStart = time.Now()

// thisProgram returns what the process is called by default.
func thisProgram() string {
	if len(os.Args) == 0 {
		return ""
	}
	return filepath.Base(os.Args[0])
}

// thisProcess returns the Owner of this process's sessions, encoded for their records.
func thisProcess(program string) []byte {
	host, _ := os.Hostname() // better a record without it than no lock
	record, err := json.Marshal(Owner{host, os.Getpid(), program, processStart.UTC().Truncate(time.Millisecond), Version})
	if err != nil {
		return []byte("{}")
	}
	return record
}

// record returns the key of the session's record. Its value is an Owner, and its mod
// revision the epoch that guards the puts of the session, see invalidatePuts.
func (s *Session) record() string { return s.client.keys.Record(s.member) }

// currentEpoch returns the mod revision of the record, as far as it is known.
func (s *Session) currentEpoch() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// learnEpoch keeps the newest mod revision of the record that was seen.
func (s *Session) learnEpoch(epoch int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = max(s.epoch, epoch)
}

// writeRecord puts the record if it does not exist.
func (s *Session) writeRecord(ctx context.Context) error {
	key, before := s.record(), s.timeline.now()
	resp, _, err := s.client.store.Commit(ctx, txn.Txn{
		When:      []*pb.Compare{txn.CmpCreate(key, 0)},
		Then:      []*pb.RequestOp{txn.OpPut(key, s.client.process, s.lease)},
		Otherwise: []*pb.RequestOp{txn.OpRange(txn.RevisionsOf(key))},
	})
	if err != nil {
		return s.diagnose(err)
	}
	if err := s.follow(resp.Header, before); err != nil {
		return err
	}
	if resp.Succeeded {
		s.learnEpoch(resp.Header.Revision)
	} else if kvs := txn.Found(resp, 0); len(kvs) > 0 {
		s.learnEpoch(kvs[0].ModRevision)
	}
	return nil
}

// inEpoch guards a put of an entry by the record: the put takes effect only if the record
// has not been written since its present epoch.
func (s *Session) inEpoch(t txn.Txn) txn.Txn {
	t.Record, t.Epoch = s.guard, s.currentEpoch()
	return t
}

// invalidatePuts resolves the outcome of puts that were never answered. A transaction whose
// request timed out may be committed later: that the entry is not there proves nothing. But
// every put is guarded by the mod revision of the session's record. Once the record has
// been deleted, or written again, those puts are refused, and what is in the queue then is
// final.
//
// So invalidatePuts deletes the record, unless it has changed since anyway, and writes a
// new one for the puts that follow. It returns the create revision of the entries, 0 if there
// are none, and whether all of them are there. A delete is possible even when etcd has run
// out of space.
func (l *Lock) invalidatePuts(ctx context.Context) (created int64, whole bool, err error) {
	s := l.session
	before := s.timeline.now()
	var reads []*pb.RequestOp
	for _, k := range l.keys() {
		reads = append(reads, txn.OpRange(txn.RevisionsOf(k)))
	}
	resp, _, err := s.client.store.Commit(ctx, txn.Txn{
		Record:    s.guard,
		Epoch:     l.puts.newest(), // if another lock has invalidated the puts since, they are refused already
		Then:      append(slices.Clip(reads), txn.OpDelete(s.record())),
		Otherwise: reads,
	})
	if err != nil {
		return 0, false, s.diagnose(err)
	}
	if err := s.follow(resp.Header, before); err != nil {
		return 0, false, err
	}
	l.puts.invalidate()
	if resp.Succeeded && s.ctx.Err() == nil {
		_ = s.writeRecord(ctx) // if it fails, the next put finds it missing and tries again
	}
	found := 0
	for i := range l.entries {
		if kvs := txn.Found(resp, i); len(kvs) > 0 {
			created = max(created, kvs[0].CreateRevision)
			found++
		}
	}
	return created, found == len(l.entries), nil
}

// inFlight counts the attempts to put an entry that may yet take effect: those that are in
// flight, and those that ended without an answer.
type inFlight struct {
	mu       sync.Mutex // guards what follows
	underWay int32
	lost     bool          // at least one ended without an answer
	invalid  bool          // none can take effect any more
	epoch    int64         // the largest of all attempts
	landed   chan struct{} // closed when no attempt is under way; nil if nobody waits for that
}

// begin counts in an attempt.
func (p *inFlight) begin(epoch int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.underWay++
	p.epoch = max(p.epoch, epoch)
}

// newest returns the largest epoch of all attempts.
func (p *inFlight) newest() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.epoch
}

// end counts out an attempt.
func (p *inFlight) end(answered bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost = p.lost || !answered
	if p.underWay--; p.underWay == 0 && p.landed != nil {
		close(p.landed)
		p.landed = nil
	}
}

// invalidate notes that the attempts begun so far cannot take effect any more. None may
// follow.
func (p *inFlight) invalidate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.invalid = true
}

// unresolved reports whether an attempt may yet take effect.
func (p *inFlight) unresolved() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.invalid && (p.underWay > 0 || p.lost)
}

// wait blocks until no attempt is under way, or ctx ends.
func (p *inFlight) wait(ctx context.Context) {
	p.mu.Lock()
	if p.invalid || p.underWay == 0 {
		p.mu.Unlock()
		return
	}
	if p.landed == nil {
		p.landed = make(chan struct{})
	}
	landed := p.landed
	p.mu.Unlock()
	select {
	case <-landed:
	case <-ctx.Done():
	}
}

// timeline is what etcd's answers to a session have shown of the cluster. From it the
// session notices that a backup was restored: what it knows of its entries is not true any
// more.
type timeline struct {
	cluster  atomic.Uint64 // its ID; 0 until it is known
	revision atomic.Int64  // the largest that was seen
}

// now returns the revision that the answer to a request sent from now on must not fall
// behind.
func (t *timeline) now() (revision int64) { return t.revision.Load() }

// saw takes in the header of an answer.
func (t *timeline) saw(header *pb.ResponseHeader) {
	if header == nil {
		return
	}
	t.cluster.CompareAndSwap(0, header.ClusterId)
	for seen := t.revision.Load(); header.Revision > seen && !t.revision.CompareAndSwap(seen, header.Revision); {
		seen = t.revision.Load()
	}
}

// follows reports whether an answer is from the same cluster, and not behind the revision
// that was known before its request was sent. For a linearizable read and for a write,
// false is proof that etcd has gone back. For an answer about leases it is not: a member
// that lags behind fills in its own revision. Proxies may leave headers empty.
func (t *timeline) follows(header *pb.ResponseHeader, before int64) bool {
	if header == nil || header.Revision == 0 {
		return true
	}
	return header.Revision >= before && t.same(header)
}

// same reports whether an answer is from the same cluster.
func (t *timeline) same(header *pb.ResponseHeader) bool {
	cluster := t.cluster.Load()
	return cluster == 0 || header.ClusterId == 0 || header.ClusterId == cluster
}

// audit compares what the session believes with what etcd has. It ends the holds whose
// entries somebody else has deleted, removes entries that belong to no lock, and ends the
// session if etcd has gone back to an earlier time.
func (s *Session) audit() {
	// What takes longer is left to the next audit: the next renewal must not wait.
	until := s.renewed.sent.Add(s.holdTime() / 3)
	ctx, cancel := context.WithTimeout(s.ctx, min(time.Until(until), cleanupWait))
	defer cancel()
	if s.renewed.odd { // perhaps only because the member that has answered is behind the others
		if _, err := s.look(ctx, txn.Txn{Then: []*pb.RequestOp{txn.OpRange(txn.RevisionsOf(s.record()))}}); err != nil {
			return
		}
	}
	s.auditHolds(ctx)
	s.auditEntries(ctx)
}

// look makes a transaction that reads, linearizably. If the answer is from an earlier time
// than those before it, the session is lost.
func (s *Session) look(ctx context.Context, t txn.Txn) (*pb.TxnResponse, error) {
	before := s.timeline.now()
	resp, err := txn.Ask(ctx, s.client.store, func(ctx context.Context) (*pb.TxnResponse, error) {
		resp, err := s.client.store.Send(ctx, t)
		return resp, clientv3.ContextError(ctx, err)
	})
	if err != nil {
		return nil, err
	}
	return resp, s.follow(resp.Header, before)
}

// follow takes in the header of a linearizable answer; before is the revision that was
// known when the request was sent. If the answer is from an earlier time, the session is
// lost: a backup was restored in between, and holds granted since then are void.
func (s *Session) follow(header *pb.ResponseHeader, before int64) error {
	if !s.timeline.follows(header, before) {
		return s.fail(errBackInTime)
	}
	s.timeline.saw(header)
	return nil
}

// auditHolds ends the holds, and the waits in queues, whose entries are gone. It makes one
// request for a batch of entries; if one of them is not as it was, another for the batch,
// and one for each entry that is gone.
func (s *Session) auditHolds(ctx context.Context) {
	type believed struct {
		*Lock
		*entry
	}
	s.mu.Lock()
	all := make([]believed, 0, s.used)
	for l := range s.locks {
		for i := range l.entries {
			if l.reached(enqueued) {
				all = append(all, believed{l, &l.entries[i]})
			}
		}
	}
	s.mu.Unlock()
	_ = inBatches(all, func(batch []believed) error { // if etcd does not answer, the next audit asks again
		stand := txn.Txn{Otherwise: []*pb.RequestOp{txn.OpRange(txn.RevisionsOf(s.record()))}} // with a read, so that etcd does not answer with what one member knows
		reads := make([]*pb.RequestOp, len(batch))
		for i, b := range batch {
			k := b.key(b.entry)
			stand.When = append(stand.When, txn.CmpCreate(k, b.token.Load()))
			reads[i] = txn.OpRange(txn.RevisionsOf(k))
		}
		resp, err := s.look(ctx, stand)
		if err != nil || resp.Succeeded {
			return err
		}
		if resp, err = s.look(ctx, txn.Txn{Then: reads}); err != nil {
			return err
		}
		for i, b := range batch {
			kvs := txn.Found(resp, i)
			if ctx.Err() == nil && b.ctx.Err() == nil && (len(kvs) == 0 || kvs[0].CreateRevision != b.token.Load()) {
				_ = b.entryDeleted(ctx) // the lock keeps the error
			}
		}
		return ctx.Err()
	})
}

// auditEntries removes from queues what is on the lease under the session's name and
// belongs to none of its locks. Such entries come back with a backup; on a lease that is
// renewed they would block their names forever.
func (s *Session) auditEntries(ctx context.Context) {
	lease, err := s.leaseWithKeys(ctx)
	if err != nil {
		return
	}
	if !s.timeline.same(lease.Header) {
		_ = s.fail(errBackInTime) // the session keeps the error
		return
	}
	s.timeline.saw(lease.Header)
	strays := s.unclaimed(s.own(lease.Keys))
	err = inBatches(strays, func(batch []stray) error {
		reads := make([]*pb.RequestOp, len(batch))
		for i, e := range batch {
			reads[i] = txn.OpRange(txn.RevisionsOf(e.key))
		}
		resp, err := s.look(ctx, txn.Txn{Then: reads})
		if err != nil {
			return err
		}
		for i := range batch {
			if kvs := txn.Found(resp, i); len(kvs) > 0 {
				batch[i].created = kvs[0].CreateRevision
			}
		}
		return nil
	})
	if err != nil {
		return
	}
	// Once more: what was read may have been put by a lock that has come since. A lock that
	// comes from now on does not mistake for its own what was there before it (see
	// enqueue).
	strays = slices.DeleteFunc(s.unclaimed(strays), func(e stray) bool { return e.created == 0 })
	if len(strays) == 0 {
		return
	}
	err = concurrently(s.client, strays, func(e stray) error { return e.remove(ctx, s.client.store) })
	s.client.log.Warn("entries that belong to no lock, perhaps of a backup", "lease", s.member, "entries", len(strays), "error", err)
}

// stray is an entry that may belong to no lock.
type stray struct {
	name, key string
	created   int64 // create revision; 0 until it is known
}

// removal returns the transaction that deletes this incarnation of the entry and no other.
func (e stray) removal() txn.Txn {
	return txn.Txn{
		Name: e.name,
		When: []*pb.Compare{txn.CmpCreate(e.key, e.created)},
		Then: []*pb.RequestOp{txn.OpDelete(e.key)},
	}
}

// remove deletes the entry.
func (e stray) remove(ctx context.Context, store *txn.Store) error {
	_, _, err := store.Commit(ctx, e.removal())
	return err
}

// keysPerLease is about how many bytes the keys of a full session have.
const keysPerLease = 100 * entriesPerLease

// leaseWithKeys returns the lease with its keys. That answer may be large, so it is given
// the time for its size before the request is hedged.
func (s *Session) leaseWithKeys(ctx context.Context) (*pb.LeaseTimeToLiveResponse, error) {
	request := &pb.LeaseTimeToLiveRequest{ID: int64(s.lease), Keys: true}
	return txn.AskFor(ctx, ctx, s.client.store, txn.Allowance(keysPerLease), func(ctx context.Context) (*pb.LeaseTimeToLiveResponse, error) {
		resp, err := s.client.leases.LeaseTimeToLive(ctx, request, txn.CallOptions...)
		if err == nil && resp.Header == nil {
			return nil, txn.ErrMalformed
		}
		return resp, clientv3.ContextError(ctx, err)
	})
}

// own returns those of the keys that are the session's own entries. Others may have keys on
// the same lease, such as a concurrency.Mutex of an adopted session.
func (s *Session) own(keys [][]byte) (own []stray) {
	for _, k := range keys {
		e := stray{key: string(k)}
		var ok bool
		if e.name, ok = s.client.keys.Name(e.key); ok && s.client.keys.Member(e.key) == s.member {
			own = append(own, e)
		}
	}
	return own
}

// unclaimed returns the entries that certainly belong to no lock of the session. While it
// is not known where in the queue a lock is, every entry of its name may be its own.
func (s *Session) unclaimed(entries []stray) (strays []stray) {
	if len(entries) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	uncertain, claimed := make(map[string]bool), make(map[string]bool, s.used) // names and keys
	for l := range s.locks {
		for i := range l.entries {
			if e := &l.entries[i]; l.reached(enqueued) {
				claimed[l.key(e)] = true
			} else {
				uncertain[e.place.Name] = true
			}
		}
	}
	for _, e := range entries {
		if !uncertain[e.name] && !claimed[e.key] {
			strays = append(strays, e)
		}
	}
	return strays
}
