package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// catchUpTime is how long a member may take to reach the revision that another had before it
// counts as behind.
const catchUpTime = 2 * time.Second

// member is a member of etcd and what it has answered.
type member struct {
	endpoint string
	status   *clientv3.StatusResponse
	err      error
}

// members asks each member about itself, and compares the answers. It reports whether it
// makes sense to go on: whether they are of one cluster, and one has answered.
func (x *examination) members(ctx context.Context, etcd *clientv3.Client) bool {
	const check = "members"
	members := make([]*member, 0, len(x.program.connection.endpoints))
	for _, endpoint := range x.program.connection.endpoints {
		members = append(members, &member{endpoint: endpoint})
	}
	x.ask(ctx, etcd, members)
	before := len(x.Findings)
	var answered []*member
	for _, m := range members {
		if m.err != nil {
			x.add(check, levelWrong, "the member at %s does not answer (%v): see whether it runs and can be reached from here", m.endpoint, m.err)
			continue
		}
		answered = append(answered, m)
		x.member(m)
	}
	if len(answered) == 0 {
		return false
	}
	if !x.compare(ctx, etcd, answered) {
		return false
	}
	if len(x.Findings) == before {
		x.add(check, levelOK, "%s with the same cluster, a leader, and revision %d", plural(len(answered), "member answers", "members answer"), newest(answered))
	}
	x.countMembers(ctx, etcd, answered)
	x.add("clocks", levelNote, "not compared: etcd does not report them. Leases are timed by the leader alone, with a clock that only goes forward; what is compared is the revisions")
	return true
}

// ask asks members about themselves, all at once.
func (x *examination) ask(ctx context.Context, etcd *clientv3.Client, members []*member) {
	patience := x.program.connection.dialTimeout
	answer, cancel := context.WithTimeout(ctx, patience*9/10)
	defer cancel()
	var asking sync.WaitGroup
	for _, m := range members {
		asking.Go(func() {
			if m.status, m.err = etcd.Status(answer, m.endpoint); errors.Is(m.err, context.DeadlineExceeded) {
				m.err = cmp.Or(unreachable(ctx, m.endpoint, patience/10), m.err)
			}
		})
	}
	asking.Wait()
}

// unreachable returns why there is no connection to an endpoint, nil if there is one: etcd's
// client only says that it took too long.
func unreachable(ctx context.Context, endpoint string, patience time.Duration) error {
	if _, address, ok := strings.Cut(endpoint, "://"); ok {
		endpoint = address
	}
	dialer := net.Dialer{Timeout: patience}
	connection, err := dialer.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return err
	}
	return connection.Close()
}

// member looks at one member by itself.
func (x *examination) member(m *member) {
	const check, full = "members", 80
	s := m.status
	if s.Leader == 0 {
		x.add(check, levelWrong, "the member at %s has no leader: see whether it reaches the other members, and whether a majority of them runs", m.endpoint)
	}
	if s.IsLearner {
		x.add(check, levelNote, "the member at %s is a learner, which does not vote yet", m.endpoint)
	}
	if s.DbSizeQuota > 0 && s.DbSize*100/s.DbSizeQuota >= full {
		x.add("space", levelWrong, "the member at %s uses %d %% of its quota of %d MB: compact and defragment, or raise the quota, see docs/operating.md", m.endpoint, s.DbSize*100/s.DbSizeQuota, s.DbSizeQuota>>20)
	}
}

// newest returns the largest revision of members.
func newest(members []*member) (revision int64) {
	for _, m := range members {
		revision = max(revision, m.status.Header.Revision)
	}
	return revision
}

// compare looks for members that differ. Under load no two have the same revision at one
// time, so one counts as behind only if it does not reach in time what another had before.
// compare reports whether all are of one cluster.
func (x *examination) compare(ctx context.Context, etcd *clientv3.Client, members []*member) bool {
	const check = "members"
	first := members[0].status
	mixed := false
	for _, m := range members[1:] {
		if m.status.Header.ClusterId != first.Header.ClusterId {
			x.add(check, levelWrong, "%s and %s belong to different clusters: no lock of one excludes one of the other; correct --endpoints", members[0].endpoint, m.endpoint)
			return false
		}
		mixed = mixed || m.status.Version != first.Version
	}
	if mixed {
		var all string
		for _, m := range members {
			all += fmt.Sprintf(" %s has %s,", m.endpoint, m.status.Version)
		}
		x.add(check, levelNote, "the members run several versions of etcd:%s as during an upgrade", all)
	}
	revision := newest(members)
	for _, m := range x.behind(ctx, etcd, members, revision) {
		x.add(check, levelWrong, "the member at %s is at revision %d and did not reach %d, where another was, within %v: see whether it reaches the other members, and look at its disk", m.endpoint, m.status.Header.Revision, revision, catchUpTime)
	}
	return true
}

// behind returns the members that do not reach the revision in time.
func (x *examination) behind(ctx context.Context, etcd *clientv3.Client, members []*member, revision int64) []*member {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(catchUpTime); ; {
		var late []*member
		for _, m := range members {
			if m.err == nil && m.status.Header.Revision < revision {
				late = append(late, m)
			}
		}
		if len(late) == 0 || time.Now().After(deadline) {
			return late
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil
		}
		asked := make([]*member, len(late))
		for i, m := range late {
			asked[i] = &member{endpoint: m.endpoint}
		}
		x.ask(ctx, etcd, asked)
		for i, m := range late { // without an answer, what was known stays
			if asked[i].err == nil {
				m.status = asked[i].status
			}
		}
	}
}

// countMembers says if members were not asked.
func (x *examination) countMembers(ctx context.Context, etcd *clientv3.Client, answered []*member) {
	ctx, cancel := context.WithTimeout(ctx, x.program.connection.dialTimeout)
	defer cancel()
	resp, err := etcd.MemberList(ctx)
	if err != nil {
		return // it needs a majority, whose lack is reported already
	}
	asked := make(map[uint64]bool)
	for _, m := range answered {
		asked[m.status.Header.MemberId] = true
	}
	if others := len(resp.Members) - len(asked); others > 0 {
		x.add("members", levelNote, "%s not asked: give the addresses of all with --endpoints", plural(others, "member of the cluster was", "members of the cluster were"))
	}
}
