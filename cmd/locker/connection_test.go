package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Below "locker run", LOCKER_KEY is the key of the lock, and not the file with a key of TLS.
func TestConnection_TheEnvironmentOfRunIsNotTakenForItsOwn(t *testing.T) {
	b := locktest.Setup(t)
	locktest.Lock(t, b.Client(t), "a", "value")
	t.Setenv("LOCKER_ENDPOINTS", strings.Join(b.Server.Endpoints(), ","))
	t.Setenv("ETCDCTL_ENDPOINTS", "127.0.0.1:1") // LOCKER_ENDPOINTS comes first
	t.Setenv("LOCKER_KEY", "locker/a/1")
	t.Setenv("LOCKER_TOKEN", "1")
	var out, errs bytes.Buffer
	if code := execute([]string{"get", "a"}, strings.NewReader(""), &out, &errs); code != 0 || strings.TrimSpace(out.String()) != "value" {
		t.Errorf("code %d, %q, %q", code, out.String(), errs.String())
	}
	t.Setenv("LOCKER_TOKEN", "")
	if code := execute([]string{"get", "a"}, strings.NewReader(""), &out, &errs); code != exitUsage {
		t.Errorf("with a key and no certificate: code %d, %q", code, errs.String())
	}
}

func TestConnection_OfAUserIsGivenUpInTime(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	b.AddUser(t, "reader")
	b.Permit(t, "reader", clientv3.PermissionType(clientv3.PermRead), "locker/")
	proxy := b.Server.Proxy(t)
	proxy.Freeze()
	args := []string{"get", "a", "--user", "reader:reader", "--endpoints", proxy.Endpoints()[0]}
	began := time.Now()
	callWith(t, nil, append(args, "--dial-timeout", "100ms")...).want(t, 1)
	soon(t, began)
	ctx, interrupt := context.WithCancel(locktest.Within(t))
	code := make(chan int, 1)
	var out, errs bytes.Buffer
	go func() { code <- executeUntil(ctx, append(args, "--dial-timeout", "1h"), nil, &out, &errs) }()
	interrupt()
	if got := locktest.Receive(t, code); got != 1 {
		t.Errorf("exit code %d, %s", got, &errs)
	}
}

// To log in takes four delays, and to ask another two: each would be in time by itself.
func TestConnection_LogsInAndAsksWithinOneTimeout(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	b.AddUser(t, "reader")
	b.Permit(t, "reader", clientv3.PermissionType(clientv3.PermRead), "locker/")
	proxy := b.Server.Proxy(t)
	const delay = 200 * time.Millisecond
	proxy.Delay(delay)
	c := connection{endpoints: proxy.Endpoints(), user: "reader:reader", dialTimeout: 5 * delay, prefix: "locker/", ttl: time.Minute}
	if _, _, stop, err := c.open(locktest.Within(t)); err == nil {
		stop()
		t.Error("it took longer than the timeout")
	}
}

// Locks are released after the context that the program was connected with has ended.
func TestConnection_OutlivesTheContextItWasMadeWith(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	b.AddUser(t, "owner")
	b.Permit(t, "owner", clientv3.PermissionType(clientv3.PermReadWrite), "locker/")
	c := connection{endpoints: b.Server.Endpoints(), user: "owner:owner", dialTimeout: locktest.Timeout, prefix: "locker/", ttl: time.Minute}
	ctx, cancel := context.WithCancel(locktest.Within(t))
	client, _, stop, err := c.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	l := locktest.Lock(t, client, "a", "")
	cancel()
	locktest.Unlock(t, l)
}
