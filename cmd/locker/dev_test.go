package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// endpoint returns the address that dev prints.
func endpoint(t *testing.T, p *background) string {
	t.Helper()
	line := p.line(t)
	address, ok := strings.CutPrefix(line, "export ETCDCTL_ENDPOINTS=")
	if !ok {
		t.Fatalf("printed %q", line)
	}
	return address
}

// connectTo returns a client of the etcd at an address.
func connectTo(t *testing.T, address string) (*locker.Client, *clientv3.Client) {
	etcd := locktest.Connect(t, locker.ClientConfig(address))
	return locktest.NewClient(t, etcd), etcd
}

func TestDev_RunsAnEtcdUntilItIsInterruptedAndLeavesNothing(t *testing.T) {
	directory := t.TempDir()
	t.Setenv("TMPDIR", directory)
	p := start(t, "dev", "--listen", "127.0.0.1:0")
	address := endpoint(t, p)
	c, _ := connectTo(t, address)
	l := locktest.Lock(t, c, "a", "one")
	if got := callWith(t, nil, "get", "a", "--endpoints", address).want(t, 0); got.stdout != "one\n" {
		t.Errorf("printed %q", got.stdout)
	}
	callWith(t, nil, "doctor", "--slow", patient, "--endpoints", address).want(t, 0)
	watcher := start(t, "watch", "a", "--endpoints", address) // an open watch does not keep it
	watcher.line(t)
	busy := callWith(t, nil, "dev", "--listen", address).want(t, 1)
	if !strings.Contains(busy.stderr, "is in use") {
		t.Error(busy.stderr)
	}
	locktest.Unlock(t, l)
	_ = c.Close()
	p.wantInterrupted(t)
	if lines := strings.Count(p.stderr.String(), "\n"); lines != 1 || !strings.Contains(p.stderr.String(), address) {
		t.Errorf("stderr:\n%s", p.stderr)
	}
	left, err := os.ReadDir(directory)
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestDev_KeepsADirectoryThatItIsGiven(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	p := start(t, "dev", "--listen", "127.0.0.1:0", "--data", data)
	_, etcd := connectTo(t, endpoint(t, p))
	locktest.PutKey(t, etcd, "key", "kept")
	if got := callWith(t, nil, "dev", "--listen", "127.0.0.1:0", "--data", data).want(t, 1); !strings.Contains(got.stderr, "another process uses") {
		t.Error(got.stderr)
	}
	p.wantInterrupted(t)
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	p = start(t, "dev", "--listen", "127.0.0.1:0", "--data", data)
	_, etcd = connectTo(t, endpoint(t, p))
	resp, err := etcd.Get(locktest.Within(t), "key")
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "kept" {
		t.Error(resp, err)
	}
	p.wantInterrupted(t)
}
