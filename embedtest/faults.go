package embedtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
)

const (
	rootName     = "root"
	rootPassword = "root"
)

// Stop stops a member as if its process had been killed: connections break, new ones are
// refused, and a leader does not transfer its leadership. It returns when the member is
// down. Stopping a stopped member does nothing.
func (s *Server) Stop(tb testing.TB, member int) {
	tb.Helper()
	s.member(tb, member).halt()()
}

// Restart starts a member again with the same data and addresses, stopping it first if it
// is running. It returns when the member serves requests, or once the member has started
// if it is isolated or too few members are up for a quorum.
func (s *Server) Restart(tb testing.TB, member int) {
	tb.Helper()
	m := s.member(tb, member)
	m.halt()()
	if err := m.start(s.config(m)); err != nil {
		tb.Fatalf("embedtest: restart: %v", err)
	}
	for other := range s.members {
		if other != member && (s.isIsolated(member) || s.isIsolated(other)) {
			s.cut(member, other)
		}
	}
	if reachable := s.reachable(); len(reachable) >= s.quorum() {
		// This includes members that were started earlier and had no quorum.
		for _, i := range reachable {
			if err := s.members[i].awaitReady(); err != nil {
				tb.Fatalf("embedtest: restart: %v", err)
			}
		}
	}
}

// Leader returns the index of the leader: the member that a quorum of the running,
// non-isolated members follows. It waits for an election in progress to finish.
func (s *Server) Leader(tb testing.TB) int {
	tb.Helper()
	leader, err := s.awaitLeader()
	if err != nil {
		tb.Fatal(err)
	}
	return leader
}

// MoveLeader makes another member the leader, and returns when a quorum follows it. It
// fails the test if no other member is eligible.
func (s *Server) MoveLeader(tb testing.TB) {
	tb.Helper()
	old := s.Leader(tb)
	var next *etcdserver.EtcdServer
	for _, i := range s.reachable() {
		if i != old {
			next = s.members[i].server()
		}
	}
	if next == nil {
		tb.Fatal("embedtest: move leader: no other member")
	}
	err := await("a new leader", func() bool {
		leader, ok := s.leader()
		if !ok || leader != old {
			return ok
		}
		// Raft silently abandons a transfer after an election timeout.
		server := s.members[old].server()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server != nil {
			server.MoveLeader(ctx, uint64(server.MemberID()), uint64(next.MemberID()))
		}
		return false
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// Isolate disconnects a member from the other members; clients still reach it. It does
// not wait for the consequences: use [Server.Leader] to wait until the remaining members
// agree on a leader. It fails the test if the cluster has only one member.
func (s *Server) Isolate(tb testing.TB, member int) {
	tb.Helper()
	s.member(tb, member)
	if len(s.members) == 1 {
		tb.Fatal("embedtest: isolate: a single member has no peers")
	}
	s.mu.Lock()
	s.isolated[member] = true
	s.mu.Unlock()
	for other := range s.members {
		if other != member {
			s.cut(member, other)
		}
	}
}

// Rejoin undoes [Server.Isolate]. If enough members are up for a quorum, it returns when
// the member follows the same leader as the others.
func (s *Server) Rejoin(tb testing.TB, member int) {
	tb.Helper()
	m := s.member(tb, member)
	s.mu.Lock()
	delete(s.isolated, member)
	s.mu.Unlock()
	for other := range s.members {
		if other != member && !s.isIsolated(other) {
			s.mend(member, other)
		}
	}
	if m.server() == nil || len(s.reachable()) < s.quorum() {
		return
	}
	err := await("the member to follow the leader", func() bool {
		leader, ok := s.leader()
		if !ok {
			return false
		}
		server, leading := m.server(), s.members[leader].server()
		return server != nil && leading != nil && server.Leader() == leading.MemberID()
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// ExpireLease ends a lease and deletes its keys immediately, as if its TTL had elapsed:
// etcd itself revokes a lease that expires. It returns when that is done, and fails the
// test if there is no such lease or no quorum.
func (s *Server) ExpireLease(tb testing.TB, id clientv3.LeaseID) {
	tb.Helper()
	err := s.asRoot(func(ctx context.Context, leader *etcdserver.EtcdServer) error {
		_, err := leader.LeaseRevoke(ctx, &etcdserverpb.LeaseRevokeRequest{ID: int64(id)})
		return err
	})
	if err != nil {
		tb.Fatalf("embedtest: expire lease %x: %v", id, err)
	}
}

// Compact discards all revisions before the current one, and returns when they are gone
// from the leader's disk. From then on, watches and reads at those revisions fail.
func (s *Server) Compact(tb testing.TB) {
	tb.Helper()
	err := s.asRoot(func(ctx context.Context, leader *etcdserver.EtcdServer) error {
		// A linearizable read, because a new leader may still be behind.
		now, err := leader.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, CountOnly: true})
		if err != nil {
			return err
		}
		_, err = leader.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: now.Header.Revision, Physical: true})
		if errors.Is(err, mvcc.ErrCompacted) {
			return nil // nothing has been written since the last compaction
		}
		return err
	})
	if err != nil {
		tb.Fatalf("embedtest: compact: %v", err)
	}
}

func (s *Server) enableAuth() error {
	return s.asRoot(func(ctx context.Context, leader *etcdserver.EtcdServer) error {
		if _, err := leader.UserAdd(ctx, &etcdserverpb.AuthUserAddRequest{Name: rootName, Password: rootPassword}); err != nil {
			return fmt.Errorf("add user root: %w", err)
		}
		if _, err := leader.RoleAdd(ctx, &etcdserverpb.AuthRoleAddRequest{Name: rootName}); err != nil {
			return fmt.Errorf("add role root: %w", err)
		}
		if _, err := leader.UserGrantRole(ctx, &etcdserverpb.AuthUserGrantRoleRequest{User: rootName, Role: rootName}); err != nil {
			return fmt.Errorf("grant role root: %w", err)
		}
		_, err := leader.AuthEnable(ctx, &etcdserverpb.AuthEnableRequest{})
		return err
	})
}

// asRoot calls f with the leader, without a client in between. With authentication, f has
// the rights of root, whatever root's password is.
func (s *Server) asRoot(f func(ctx context.Context, leader *etcdserver.EtcdServer) error) error {
	i, err := s.awaitLeader()
	if err != nil {
		return err
	}
	leader := s.members[i].server()
	if leader == nil {
		return rpctypes.ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	return f(leader.AuthStore().WithRoot(ctx), leader)
}

func (s *Server) awaitLeader() (int, error) {
	var leader int
	err := await("a leader", func() (ok bool) {
		leader, ok = s.leader()
		return ok
	})
	return leader, err
}

// leader returns the member that a quorum of the reachable ones follows. Isolated members
// do not count: a former leader believes for a while that it still leads.
func (s *Server) leader() (index int, ok bool) {
	followers := make(map[uint64]int)
	ids := make(map[uint64]int)
	for _, i := range s.reachable() {
		if server := s.members[i].server(); server != nil {
			followers[server.Lead()]++
			ids[uint64(server.MemberID())] = i
		}
	}
	for id, n := range followers {
		if index, ok := ids[id]; ok && n >= s.quorum() {
			return index, true
		}
	}
	return 0, false
}

// reachable returns the indexes of the members that are running and not isolated.
func (s *Server) reachable() []int {
	var indexes []int
	for i, m := range s.members {
		if m.server() != nil && !s.isIsolated(i) {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

func (s *Server) quorum() int { return len(s.members)/2 + 1 }

func (s *Server) isIsolated(member int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isolated[member]
}

// cut makes each of two members drop messages from the other.
func (s *Server) cut(a, b int) {
	if sa, sb := s.members[a].server(), s.members[b].server(); sa != nil && sb != nil {
		sa.CutPeer(sb.MemberID())
		sb.CutPeer(sa.MemberID())
	}
}

func (s *Server) mend(a, b int) {
	if sa, sb := s.members[a].server(), s.members[b].server(); sa != nil && sb != nil {
		sa.MendPeer(sb.MemberID())
		sb.MendPeer(sa.MemberID())
	}
}

func (s *Server) member(tb testing.TB, index int) *etcdMember {
	tb.Helper()
	if index < 0 || index >= len(s.members) {
		tb.Fatalf("embedtest: no member %d among %d", index, len(s.members))
	}
	return s.members[index]
}

// await polls until done returns true. It polls because each member announces changes of
// leader on its own, and to only one waiting caller.
func await(what string, done func() bool) error {
	timeout := time.NewTimer(waitTimeout)
	defer timeout.Stop()
	ticks := time.NewTicker(2 * time.Millisecond)
	defer ticks.Stop()
	for !done() {
		select {
		case <-ticks.C:
		case <-timeout.C:
			return fmt.Errorf("embedtest: waited %v for %s", waitTimeout, what)
		}
	}
	return nil
}
