package main

import (
	"context"
	"errors"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// compact throws away what clients may want to read, all the time. What the witness has not seen stays.
func (s *scene) compact(ctx context.Context, f *firing) (err error) {
	compacted := int64(0)
	for end := time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		if seen := s.witness.seen.Load(); seen > compacted {
			// After a fault of another kind it may take more than one attempt.
			if _, err = s.etcd.Compact(ctx, seen); err == nil {
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
	m := s.cluster.Member(f.Target)
	err := m.Pause()
	_ = pause(ctx, f.For)
	return errors.Join(err, m.Resume())
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
		err := errors.Join(first.Pause(), second.Pause())
		_ = pause(ctx, f.For)
		return errors.Join(err, first.Resume(), second.Resume())
	}
	first.Kill()
	second.Kill()
	_ = pause(ctx, f.For)
	return errors.Join(s.restart(f.Target), s.restart((f.Target+1)%s.members))
}

// noSpace raises the alarm that etcd raises when it has reached its quota.
func (s *scene) noSpace(ctx context.Context, f *firing) error {
	member := uint64(0)
	err := s.insist(ctx, func(ctx context.Context) error {
		status, err := s.etcd.Status(ctx, s.cluster.Member(f.Target).Endpoint())
		if err != nil {
			return err
		}
		member = status.Header.MemberId
		_, err = pb.NewMaintenanceClient(s.etcd.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{
			Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: pb.AlarmType_NOSPACE,
		})
		return err
	})
	_ = pause(ctx, f.For)
	return errors.Join(err, s.insist(context.Background(), func(ctx context.Context) error {
		_, err := s.etcd.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: member, Alarm: pb.AlarmType_NOSPACE})
		return err
	}))
}
