package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
)

func TestRedis_ThatDoesNotSyncEveryWriteIsRefused(t *testing.T) {
	t.Parallel()
	const info = "# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n"
	text, err := redisText(info, map[string]string{"appendonly": "yes", "appendfsync": "always"})
	if err != nil || text != "Redis 7.0.15 with appendfsync always" {
		t.Errorf("%q, %v", text, err)
	}
	for _, settings := range []map[string]string{
		{"appendonly": "yes", "appendfsync": "everysec"},
		{"appendonly": "no", "appendfsync": "always"},
		{},
	} {
		if _, err := redisText(info, settings); err == nil || !strings.Contains(err.Error(), "--appendfsync always") {
			t.Errorf("%v: %v", settings, err)
		}
	}
}

func TestZookeeper_NamesItsVersion(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"Zookeeper version: 3.8.4-9316c2a7a97e1666d8f4593f34dd6fc36ecc436c, built on 2024-02-12 22:16 UTC\n": "ZooKeeper 3.8.4",
		"Zookeeper version: 3.4.14, built on 03/06/2019 16:18 GMT\n":                                         "ZooKeeper 3.4.14",
		"srvr is not executed because it is not in the whitelist.\n":                                         "ZooKeeper of unknown version",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4))
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}()
		if got, err := describeZookeeper(testContext(t), l.Addr().String()); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		_ = l.Close()
	}
}

func TestPeers_ThatDoNotAnswerAreReportedBeforeAnythingIsMeasured(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nowhere := l.Addr().String()
	_ = l.Close()
	if texts, err := (peerAddresses{zookeeper: nowhere}).describe(testContext(t)); err == nil || !strings.Contains(err.Error(), nowhere) {
		t.Errorf("%v, %v", texts, err)
	}
	if texts, err := (peerAddresses{}).describe(testContext(t)); err != nil || len(texts) > 0 {
		t.Errorf("without peers: %v, %v", texts, err)
	}
}

// recipe is a lock that is granted by a channel.
type recipe chan struct{}

func (r recipe) Lock() error   { <-r; return nil }
func (r recipe) Unlock() error { return nil }

func TestZookeeper_LockThatWasInterruptedKeepsItsPlace(t *testing.T) {
	t.Parallel()
	r := make(recipe)
	m := &zookeeperMutex{recipe: r}
	interrupted, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := m.Lock(interrupted); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	r <- struct{}{}
	if err := m.Lock(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := m.Unlock(t.Context()); err != nil || m.queued != nil {
		t.Errorf("unlocked: %v", err)
	}
}
