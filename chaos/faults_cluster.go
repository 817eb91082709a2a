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

// compact throws away what clients may want to read, all the time. What the witness has not seen stays.
func (s *scene) compact(ctx context.Context, f *firing) (err error) {
	compacted := int64(0)
	for end := time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		if seen := s.witness.seen.Load(); seen > compacted {
			// After a fault of another kind it may take more than one attempt.
			_, err = s.etcd.Compact(ctx, seen)
			if err == nil || errors.Is(err, rpctypes.ErrCompacted) { // in some rounds another does so too
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

// away kills a member and starts it again after a while.
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

// suspend stops a member and notes whether it was the leader. One that does not answer is taken for it.
func (s *scene) suspend(ctx context.Context, f *firing, member int) error {
	asked, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	status, err := s.etcd.Status(asked, s.cluster.Member(member).Endpoint())
	f.Led = f.Led || err != nil || status.Leader == status.Header.MemberId
	return s.cluster.Member(member).Pause()
}

// atLeader does what would be done to a member to the leader.
func atLeader(do func(*scene, context.Context, *firing) error) func(*scene, context.Context, *firing) error {
	return func(s *scene, ctx context.Context, f *firing) (err error) {
		if f.Target, _, err = s.leader(ctx); err != nil {
			return err
		}
		return do(s, ctx, f)
	}
}

// leader finds the leader, and another member to take its place.
func (s *scene) leader(ctx context.Context) (member int, other uint64, err error) {
	err = s.insist(ctx, func(ctx context.Context) error {
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

// quota is how large etcd's database may become: the harness has to be able to fill it, and what a round
// writes by itself has to fit in many times.
func (p plan) quota() int64 { return 16<<20 + int64(p.duration/time.Minute)*(8<<20) }

// noSpace fills etcd up to its quota, and after a while makes room again as an operator would.
func (s *scene) noSpace(ctx context.Context, f *firing) error {
	err := s.fill(ctx)
	if err == nil {
		_ = pause(ctx, f.For)
	}
	return errors.Join(err, s.makeRoom())
}

// fill writes until etcd refuses.
func (s *scene) fill(ctx context.Context) error {
	const chunk = 1 << 20
	for full, i := false, 0; !full; i++ {
		if i > 4*int(s.quota/chunk) { // it counts what it has committed, which is a little behind
			return errors.New("etcd takes more than its quota")
		}
		err := s.insist(ctx, func(ctx context.Context) error {
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

// makeRoom deletes what fill has written, gives the room back, and ends the alarm.
func (s *scene) makeRoom() error {
	ctx := context.Background()
	err := s.insist(ctx, func(ctx context.Context) error {
		gone, err := s.etcd.Delete(ctx, fillPrefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		if s.witness.seen.Load() < gone.Header.Revision && gone.Deleted > 0 {
			return errors.New("the witness would miss what is compacted")
		}
		_, err = s.etcd.Compact(ctx, s.witness.seen.Load())
		if errors.Is(err, rpctypes.ErrCompacted) {
			return nil
		}
		return err
	})
	for i := range s.members {
		endpoint := s.cluster.Member(i).Endpoint()
		err = errors.Join(err, s.insist(ctx, func(ctx context.Context) error {
			if _, err := s.etcd.Defragment(ctx, endpoint); err != nil {
				return err
			}
			status, err := s.etcd.Status(ctx, endpoint)
			if err == nil && status.DbSize > s.quota/2 {
				err = fmt.Errorf("member %d still has %d bytes", i, status.DbSize) // it has yet to compact
			}
			return err
		}))
	}
	return errors.Join(err, s.insist(ctx, func(ctx context.Context) error {
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
