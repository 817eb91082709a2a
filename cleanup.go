package locker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/internal/tasks"
	"github.com/jagregory/locker/v2/internal/txn"
)

// cleanupWait is how long a call that cannot be given up waits for etcd to confirm that
// nothing is left. A TTL may be a year; what takes longer goes on in the background.
const cleanupWait = 10 * time.Second

var (
	errAdoptedEnded = errors.New("the adopted session has ended")
	errDrained      = errors.New("the session is over, and etcd has not answered")
)

// await waits until nothing is left of the sessions, or ctx has ended, and returns what
// was not confirmed.
func (c *Client) await(ctx context.Context, sessions ...*Session) error {
	var errs []error
	var late error // why the others are not confirmed
	for _, s := range sessions {
		if late == nil {
			select {
			case <-s.done:
			case <-ctx.Done():
				late = c.orEtcdClosed(txn.Ended(ctx, c.explain(ctx.Err())))
			}
		}
		select {
		case <-s.done:
			errs = append(errs, s.closeErr)
		default:
			errs = append(errs, s.unconfirmed(late))
		}
	}
	return errors.Join(errs...)
}

// unconfirmed says what may be left of the session.
func (s *Session) unconfirmed(err error) error {
	if s.adopted != nil {
		return fmt.Errorf("entries on the adopted lease %x not confirmed gone: %w", s.lease, err)
	}
	return fmt.Errorf("lease %x not confirmed gone, it runs out by itself: %w", s.lease, err)
}

// cleanUp leaves nothing of a session that is over in etcd. By its end, at the latest,
// the lease has run out by itself, if it was not adopted.
func (s *Session) cleanUp() error {
	ctx, cancel := context.WithTimeout(s.cleanUpCtx, max(s.ttl, s.renewed.life()))
	defer cancel()
	ctx, stop := tasks.Either(ctx, s.client.etcd.Ctx())
	defer stop()
	s.awaitCallbacks(ctx)
	leave := s.revoke
	if s.adopted != nil {
		leave = s.detach
	}
	err := leave(ctx)
	if err != nil {
		err = s.unconfirmed(s.client.orEtcdClosed(err))
		s.client.log.Warn("session not confirmed gone", "lease", s.member, "error", err)
	}
	return err
}

// revoke revokes the lease, and everything on it goes with it.
func (s *Session) revoke(ctx context.Context) error {
	// What is granted after it was revoked would stay. A grant that is not answered
	// ends with ctx.
	stop := context.AfterFunc(ctx, func() { s.endCleanUp(errDrained) })
	s.grants.Wait()
	stop()
	_, err := txn.Ask(ctx, s.client.store, func(ctx context.Context) (*clientv3.LeaseRevokeResponse, error) {
		return s.client.etcd.Revoke(ctx, s.lease)
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

// detach deletes the entries and the record of an adopted session, all at once: they
// leave together.
func (s *Session) detach(ctx context.Context) error {
	select {
	case <-s.empty: // all holds have ended, and whoever was waiting has withdrawn
	case <-ctx.Done():
		return txn.Ended(ctx, ctx.Err())
	}
	// First the record: without it, no put that is still under way can take effect.
	if _, _, err := s.client.store.Commit(ctx, txn.Txn{Then: []*pb.RequestOp{txn.OpDelete(s.record())}}); err != nil {
		return err
	}
	s.mu.Lock()
	pending := s.pendingDeletes
	s.mu.Unlock()
	err := concurrently(s.client, pending, func(l *Lock) error {
		_, err := l.dequeue(ctx, nil)
		return err
	})
	return errors.Join(err, s.deleteLeftovers(ctx))
}

// deleteLeftovers deletes what is on an adopted lease under the session's own name. No
// put can follow: the record is gone.
func (s *Session) deleteLeftovers(ctx context.Context) error {
	lease, err := s.attached(ctx)
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return nil // others have keys on it that must not be read, so there is nothing to go by
	case err != nil:
		return err
	}
	return inBatches(s.entries(lease.Keys), func(batch []entry) error {
		deletes := make([]*pb.RequestOp, len(batch))
		for i, e := range batch {
			deletes[i] = txn.OpDelete(e.key)
		}
		_, _, err := s.client.store.Commit(ctx, txn.Txn{Then: deletes})
		return err
	})
}

// concurrently calls f for all items at once, so that what they write leaves together,
// and returns one of the errors. There are as many as a lease has entries.
func concurrently[T any](c *Client, items []T, f func(T) error) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex // guards what follows
		failed int
		last   error
	)
	for _, item := range items {
		wg.Add(1)
		c.tasks.Run(func() {
			defer wg.Done()
			if err := f(item); err != nil {
				mu.Lock()
				defer mu.Unlock()
				failed++
				last = err
			}
		})
	}
	wg.Wait()
	if failed > 1 {
		return fmt.Errorf("%d of %d failed, the last with: %w", failed, len(items), last)
	}
	return last
}

// inBatches calls f for the items, as many at once as etcd accepts in one transaction.
func inBatches[T any](items []T, f func([]T) error) error {
	for limit := txn.MaxTogether; len(items) > 0; {
		batch := items[:min(limit, len(items))]
		switch err := f(batch); {
		case errors.Is(err, rpctypes.ErrTooManyOps) && len(batch) > 1:
			limit = len(batch) / 2
		case err != nil:
			return err
		default:
			items = items[len(batch):]
		}
	}
	return nil
}
