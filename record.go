package locker

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/jagregory/locker/v2/internal/txn"
)

// Owner says which process a session belongs to.
type Owner struct {
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Program string    `json:"program"`
	Start   time.Time `json:"start"`
	Version string    `json:"version"` // of this library
}

// Version is the version of this library, as it stands in the records of its sessions.
const Version = "2.0.0"

var processStart = time.Now()

func thisProcess() []byte {
	host, _ := os.Hostname() // better a record without it than no lock
	program := ""
	if len(os.Args) > 0 {
		program = filepath.Base(os.Args[0])
	}
	record, err := json.Marshal(Owner{host, os.Getpid(), program, processStart.UTC().Truncate(time.Millisecond), Version})
	if err != nil {
		return []byte("{}")
	}
	return record
}

func (s *Session) record() string { return s.client.keys.Record(s.member) }

// currentEpoch returns the mod revision that the record has as far as is known.
func (s *Session) currentEpoch() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// learnEpoch keeps the newest mod revision seen of the record.
func (s *Session) learnEpoch(epoch int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = max(s.epoch, epoch)
}

// writeRecord puts the record if it is missing.
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

// invalidatePuts settles the outcome of puts that were never answered. A transaction whose
// request timed out may still be committed later, so that the entry is not there
// proves nothing. But every put is guarded by the mod revision of the session's
// record: once the record has been deleted, or written again, those puts are
// refused, and what is there then is all there will be. fence deletes the record,
// unless it has changed since anyway, puts a new one for the puts that follow, and
// returns the create revision of the entry, 0 if there is none. To delete is
// allowed also when etcd has run out of space.
func (l *Lock) invalidatePuts(ctx context.Context) (created int64, err error) {
	s := l.session
	before := s.timeline.now()
	entry := txn.OpRange(txn.RevisionsOf(l.key))
	resp, _, err := s.client.store.Commit(ctx, txn.Txn{
		Record:    s.record(),
		Learn:     s.learnEpoch,
		Epoch:     l.puts.newest(), // if another lock has fenced since, the puts are refused already
		Then:      []*pb.RequestOp{entry, txn.OpDelete(s.record())},
		Otherwise: []*pb.RequestOp{entry},
	})
	if err != nil {
		return 0, s.diagnose(err)
	}
	if err := s.follow(resp.Header, before); err != nil {
		return 0, err
	}
	l.puts.fence()
	if resp.Succeeded && s.ctx.Err() == nil {
		_ = s.writeRecord(ctx) // if it fails, the next put finds it missing and tries again
	}
	if kvs := txn.Found(resp, 0); len(kvs) > 0 {
		return kvs[0].CreateRevision, nil
	}
	return 0, nil
}
