package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// compact compacts the history again and again, up to the revision that the witness has seen.
func (s *scene) compact(ctx context.Context, f *firing) (err error) {
	compacted := int64(0)
	for end := time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		if seen := s.witness.seen.Load(); seen > compacted {
			// After another fault this may take more than one attempt.
			_, err = s.etcd.Compact(ctx, seen)
			if err == nil || errors.Is(err, rpctypes.ErrCompacted) { // compactions may run concurrently
				compacted = seen
			}
		}
		_ = pause(ctx, 200*time.Millisecond)
	}
	if compacted > 0 {
		return nil
	}
	return err
}

// away kills a member and restarts it after a while.
func (s *scene) away(ctx context.Context, f *firing) error {
	s.cluster.Member(f.Target).Kill()
	_ = pause(ctx, f.For)
	return s.restart(f.Target)
}

func (s *scene) restart(member int) error {
	ctx, cancel := context.WithTimeout(context.Background(), recovery)
	defer cancel()
	return s.cluster.Member(member).Restart(ctx)
}

func (s *scene) rollingRestart(ctx context.Context, _ *firing) error {
	for i := range s.members {
		s.cluster.Member(i).Kill()
		if err := s.restart(i); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

func (s *scene) stopMember(ctx context.Context, f *firing) error {
	err := s.suspend(ctx, f, f.Target)
	_ = pause(ctx, f.For)
	return errors.Join(err, s.cluster.Member(f.Target).Resume())
}

// suspend stops a member and records whether it was the leader, or may have been.
func (s *scene) suspend(ctx context.Context, f *firing, member int) error {
	asking, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	status, err := s.etcd.Status(asking, s.cluster.Member(member).Endpoint())
	f.Led = f.Led || err != nil || status.Leader == status.Header.MemberId
	return s.cluster.Member(member).Pause()
}

// atLeader makes a fault of a member target the leader.
func atLeader(do func(*scene, context.Context, *firing) error) func(*scene, context.Context, *firing) error {
	return func(s *scene, ctx context.Context, f *firing) (err error) {
		if f.Target, _, err = s.leader(ctx); err != nil {
			return err
		}
		return do(s, ctx, f)
	}
}

// leader returns the leader, and the ID of another member that may take its place.
func (s *scene) leader(ctx context.Context) (member int, other uint64, err error) {
	err = s.retry(ctx, func(ctx context.Context) error {
		member = -1
		for i := range s.members {
			status, err := s.etcd.Status(ctx, s.cluster.Member(i).Endpoint())
			switch {
			case err != nil:
				return err
			case status.Leader == status.Header.MemberId:
				member = i
			default:
				other = status.Header.MemberId
			}
		}
		if member < 0 {
			return errors.New("there is no leader")
		}
		return nil
	})
	return member, other, err
}

func (s *scene) moveLeader(ctx context.Context, f *firing) error {
	member, other, err := s.leader(ctx)
	if err != nil {
		return err
	}
	f.Target = member
	etcd, err := connect([]string{s.cluster.Member(member).Endpoint()})
	if err != nil {
		return err
	}
	defer etcd.Close()
	_, err = etcd.MoveLeader(ctx, other)
	return err
}

// quorumLost stops two of three members, or kills them.
func (s *scene) quorumLost(ctx context.Context, f *firing) error {
	first, second := s.cluster.Member(f.Target), s.cluster.Member((f.Target+1)%s.members)
	if f.rnd().IntN(2) == 0 {
		err := errors.Join(s.suspend(ctx, f, f.Target), s.suspend(ctx, f, (f.Target+1)%s.members))
		_ = pause(ctx, f.For)
		return errors.Join(err, first.Resume(), second.Resume())
	}
	first.Kill()
	second.Kill()
	_ = pause(ctx, f.For)
	return errors.Join(s.restart(f.Target), s.restart((f.Target+1)%s.members))
}

// quota is the maximum size of etcd's database: small enough to be filled, and many times
// what a round writes otherwise.
func (p plan) quota() int64 { return 16<<20 + int64(p.duration/time.Minute)*(8<<20) }

// noSpace fills etcd up to its quota, and after a while frees space again as an operator would.
func (s *scene) noSpace(ctx context.Context, f *firing) error {
	err := s.fill(ctx)
	if err == nil {
		_ = pause(ctx, f.For)
	}
	return errors.Join(err, s.freeSpace())
}

// fill writes until etcd refuses.
func (s *scene) fill(ctx context.Context) error {
	const chunk = 1 << 20
	for full, i := false, 0; !full; i++ {
		if i > 4*int(s.quota/chunk) { // etcd counts only what it has committed
			return errors.New("etcd accepts more than its quota")
		}
		err := s.retry(ctx, func(ctx context.Context) error {
			_, err := s.etcd.Put(ctx, fillPrefix+strconv.Itoa(i), strings.Repeat("x", chunk))
			if full = errors.Is(err, rpctypes.ErrNoSpace); full {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// freeSpace deletes what fill wrote, compacts, defragments and disarms the alarm.
func (s *scene) freeSpace() error {
	ctx := context.Background()
	err := s.retry(ctx, func(ctx context.Context) error {
		resp, err := s.etcd.Delete(ctx, fillPrefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		if s.witness.seen.Load() < resp.Header.Revision && resp.Deleted > 0 {
			return errors.New("the witness has not seen what would be compacted")
		}
		_, err = s.etcd.Compact(ctx, s.witness.seen.Load())
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil
		}
		return err
	})
	for i := range s.members {
		endpoint := s.cluster.Member(i).Endpoint()
		err = errors.Join(err, s.retry(ctx, func(ctx context.Context) error {
			if _, err := s.etcd.Defragment(ctx, endpoint); err != nil {
				return err
			}
			status, err := s.etcd.Status(ctx, endpoint)
			if err == nil && status.DbSize > s.quota/2 {
				err = fmt.Errorf("member %d still has %d bytes", i, status.DbSize) // not compacted yet
			}
			return err
		}))
	}
	return errors.Join(err, s.retry(ctx, func(ctx context.Context) error {
		if _, err := s.etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
			return err
		}
		alarms, err := s.etcd.AlarmList(ctx)
		if err == nil && len(alarms.Alarms) > 0 {
			err = errors.New("the alarm was raised again")
		}
		return err
	}))
}
