package main

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// patient makes latency no finding on a machine that is busy with other tests.
const patient = "1m"

// diagnosis is the JSON of doctor.
type diagnosis struct {
	OK       bool      `json:"ok"`
	Findings []finding `json:"findings"`
}

// examine runs doctor and returns what it has found.
func examine(t *testing.T, b locktest.Bundle, args ...string) diagnosis {
	t.Helper()
	got := call(t, b, append([]string{"doctor", "--slow", patient, "-o", "json"}, args...)...)
	d := decode[diagnosis](t, got.stdout)
	if want := map[bool]int{true: 0, false: 1}[d.OK]; got.code != want {
		t.Errorf("exit code %d, want %d; stderr:\n%s", got.code, want, got.stderr)
	}
	return d
}

// has reports whether there is a finding about all of the words.
func (d diagnosis) has(check, level string, words ...string) bool {
	return slices.ContainsFunc(d.Findings, func(f finding) bool {
		return f.Check == check && f.Level == level && !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(f.Text, word) })
	})
}

// want fails the test unless there is a finding about all of the words.
func (d diagnosis) want(t *testing.T, check, level string, words ...string) {
	t.Helper()
	if !d.has(check, level, words...) {
		text, _ := json.MarshalIndent(d, "", "  ")
		t.Errorf("no %s about %s with %q in\n%s", level, check, words, text)
	}
}

func TestDoctor_FindsNothingWrongWhereNothingIs(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	locktest.Lock(t, worker(t, b), "a", "one")
	locktest.Unlock(t, locktest.Lock(t, worker(t, b), "idle", ""))
	d := examine(t, b)
	if !d.OK {
		t.Error("something is wrong")
	}
	d.want(t, "members", "ok", "3 members answer")
	d.want(t, "clocks", "note", "revisions")
	d.want(t, "alarms", "ok")
	d.want(t, "entries", "ok", "1 entry is in the queues, all with a lease")
	d.want(t, "versions", "ok", locker.Version, "2 sessions")
	d.want(t, "sessions", "note", "1 session of Locker holds nothing")
	d.want(t, "latency", "ok")
	locktest.Eventually(t, "nothing is left of it", func() bool { return len(b.Entries(t)) == 1 })
	got := call(t, b, "doctor", "--slow", patient).want(t, 0)
	if lines := cells(got.stdout); lines[0] != "RESULT|CHECK|FINDING" || len(lines) != len(d.Findings)+1 {
		t.Errorf("printed\n%s", got.stdout)
	}
	b.Server.Endpoints()
	one := callWith(t, nil, "doctor", "--slow", patient, "--endpoints", b.Server.Endpoints()[0]).want(t, 0)
	if !strings.Contains(one.stdout, "2 members of the cluster were not asked") {
		t.Error(one.stdout)
	}
}

func TestDoctor_FindsEntriesThatStay(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.PutKey(t, b.Etcd, "locker/my lock/by hand", "")
	stuck := locktest.Get(t, worker(t, b), "my lock")
	d := examine(t, b)
	d.want(t, "entries", "wrong", fmt.Sprintf("token %d", stuck.Token), fmt.Sprintf("locker force-unlock 'my lock' --token %d", stuck.Token))
	d.want(t, "entries", "note", "1 entry is not of Locker")
	for i := range 30 {
		locktest.PutKey(t, b.Etcd, fmt.Sprintf("locker/many/%d", i), "")
	}
	examine(t, b).want(t, "entries", "wrong", "11 more entries have no lease", "locker queue NAME")
}

func TestDoctor_FindsSeveralVersionsOfLocker(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, worker(t, b), "a", "")
	record, err := json.Marshal(locker.Owner{Host: "old-host", PID: 1, Version: "1.9.0"})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := b.Etcd.Grant(locktest.Within(t), 60)
	if err == nil {
		_, err = b.Etcd.Put(locktest.Within(t), fmt.Sprintf("locker//%x", int64(lease.ID)), string(record), clientv3.WithLease(lease.ID))
	}
	if err != nil {
		t.Fatal(err)
	}
	examine(t, b).want(t, "versions", "wrong", locker.Version, "1.9.0", "old-host", "finish the upgrade")
}

func TestDoctor_FindsAlarmsAndLittleSpace(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithConfig(func(c *embed.Config) { c.QuotaBackendBytes = 2 << 20 }))
	b.FillUp(t)
	d := examine(t, b)
	d.want(t, "alarms", "wrong", "NOSPACE", "compact")
	d.want(t, "space", "wrong", "of its quota of 2 MB")
	d.want(t, "latency", "wrong", "cannot be taken")
}

func TestDoctor_FindsMembersThatAreDownOrBehind(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	behind := (b.Server.Leader(t) + 1) % 3
	b.Server.Isolate(t, behind)
	locktest.Eventually(t, "it knows no leader", func() bool {
		status, err := b.Etcd.Status(locktest.Within(t), b.Server.Endpoints()[behind])
		return err == nil && status.Leader == 0
	})
	leader := b.Server.Client(t)
	leader.SetEndpoints(b.Server.Endpoints()[b.Server.Leader(t)])
	locktest.PutKey(t, leader, "a", "b")
	d := examine(t, b, "--endpoints", endpointsFrom(b, b.Server.Leader(t), behind))
	d.want(t, "members", "wrong", b.Server.Endpoints()[behind], "has no leader")
	d.want(t, "members", "wrong", b.Server.Endpoints()[behind], "did not reach")
	b.Server.Rejoin(t, behind)
	b.Server.Stop(t, behind)
	d = examine(t, b, "--dial-timeout", "5s", "--endpoints", endpointsFrom(b, b.Server.Leader(t), behind))
	d.want(t, "members", "wrong", b.Server.Endpoints()[behind], "connection refused")
}

// endpointsFrom returns the addresses of members.
func endpointsFrom(b locktest.Bundle, members ...int) string {
	var all []string
	for _, i := range members {
		all = append(all, b.Server.Endpoints()[i])
	}
	return strings.Join(all, ",")
}

func TestDoctor_FindsMembersOfDifferentClusters(t *testing.T) {
	t.Parallel()
	b, other := locktest.Setup(t), locktest.Setup(t)
	examine(t, b, "--endpoints", b.Server.Endpoints()[0]+","+other.Server.Endpoints()[0]).want(t, "members", "wrong", "different clusters")
}

func TestDoctor_WithoutAMajorityTellsWhyFromItsMembers(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithMembers(3))
	b.Server.Stop(t, 1)
	b.Server.Stop(t, 2)
	d := examine(t, b, "--dial-timeout", "3s")
	d.want(t, "cluster", "wrong", "no answer")
	d.want(t, "members", "wrong", b.Server.Endpoints()[1], "connection refused")
}

func TestDoctor_WithoutEtcdTellsWhyInTime(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	began := time.Now()
	got := callWith(t, nil, "doctor", "--dial-timeout", "200ms", "--endpoints", l.Addr().String())
	soon(t, began)
	if got.code != 1 || !strings.Contains(got.stdout, "connection refused") {
		t.Errorf("exit code %d, %s", got.code, got.stdout)
	}
}

func TestDoctor_SaysWhatItMayNotLookAt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	b.AddUser(t, "reader")
	b.Permit(t, "reader", clientv3.PermissionType(clientv3.PermRead), "locker/")
	d := examine(t, b, "--user", "reader:reader")
	if !d.OK {
		t.Errorf("%+v", d)
	}
	d.want(t, "latency", "note", "not checked")
	b.AddUser(t, "nobody")
	d = examine(t, b, "--user", "nobody:nobody")
	d.want(t, "entries", "note", "not checked")
}

func TestDoctor_FindsASlowLock(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	d := examine(t, b, "--slow", "1ns")
	d.want(t, "latency", "wrong", "longer than 1ns")
}
