package main

import (
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// The table of roles in docs/operating.md says what is tested here.
func TestRoles_OfOperatorsSufficeForTheirCommands(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	c := worker(t, b)
	const read, write = clientv3.PermissionType(clientv3.PermRead), clientv3.PermissionType(clientv3.PermReadWrite)
	b.AddUser(t, "queue")
	b.Permit(t, "queue", read, "locker/a/")
	b.AddUser(t, "reader")
	b.Permit(t, "reader", read, "locker/a", "locker//")
	b.AddUser(t, "operator")
	b.Permit(t, "operator", read, "locker//")
	b.Permit(t, "operator", write, "locker/a/")
	b.AddUser(t, "owner")
	b.Permit(t, "owner", write, "locker/")
	for i, test := range []struct {
		user, allowed, refused string
	}{
		{"queue", "get a", "queue a; get -o wide a; ls a"},
		{"reader", "get a; get -o wide a; queue a; ls a; ls a.", "ls; force-unlock a --yes --token"},
		{"operator", "get a; queue a; force-unlock a --yes --token", "ls a; force-unlock a --lease --yes --token"},
		{"owner", "ls; doctor --slow 1m; force-unlock a --lease --yes --token", ""},
	} {
		l := locktest.Lock(t, c, "a", fmt.Sprint(i))
		run := func(command string) outcome {
			args := append(strings.Split(command, " "), "--user", test.user+":"+test.user)
			if strings.HasSuffix(command, "--token") {
				args = append(strings.Split(command, " "), fmt.Sprint(l.Token()), "--user", test.user+":"+test.user)
			}
			return call(t, b, args...)
		}
		for _, command := range strings.Split(test.refused, "; ") {
			if command == "" {
				continue
			}
			if got := run(command); got.code != 1 || !strings.Contains(got.stderr, "permission denied") {
				t.Errorf("%s may %s: exit code %d, %s", test.user, command, got.code, got.stderr)
			}
		}
		for _, command := range strings.Split(test.allowed, "; ") {
			if got := run(command); got.code != 0 {
				t.Errorf("%s may not %s: exit code %d, %s", test.user, command, got.code, got.stderr)
			}
		}
		_ = l.Unlock(locktest.Within(t)) // unless it was forced open
	}
}
