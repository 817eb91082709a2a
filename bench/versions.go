package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// describe returns the versions and settings of the servers whose addresses are known, and
// the versions of the libraries. It returns an error for a Redis server that does not sync
// every write to disk, as etcd and ZooKeeper do.
func (p peerAddresses) describe(ctx context.Context) (texts []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	var modules []string
	if p.redis != "" {
		text, err := describeRedis(ctx, p.redis)
		if err != nil {
			return nil, fmt.Errorf("redis at %s: %w", p.redis, err)
		}
		texts = append(texts, text)
		modules = append(modules, "github.com/bsm/redislock", "github.com/go-redsync/redsync/v4", "github.com/redis/go-redis/v9", "github.com/redis/rueidis")
	}
	if p.zookeeper != "" {
		for _, server := range strings.Split(p.zookeeper, ",") {
			text, err := describeZookeeper(ctx, server)
			if err != nil {
				return nil, fmt.Errorf("zookeeper at %s: %w", server, err)
			}
			texts = append(texts, text)
		}
		modules = append(modules, "github.com/go-zookeeper/zk")
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, m := range build.Deps {
			if slices.Contains(modules, m.Path) {
				texts = append(texts, m.Path+" "+m.Version)
			}
		}
	}
	return texts, nil
}

func describeRedis(ctx context.Context, address string) (string, error) {
	c := redis.NewClient(&redis.Options{Addr: address})
	defer c.Close()
	info, err := c.Info(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	settings, err := c.ConfigGet(ctx, "append*").Result()
	if err != nil {
		return "", err
	}
	return redisText(info, settings)
}

// redisText formats what Redis says of itself, unless it does not sync every write.
func redisText(info string, settings map[string]string) (string, error) {
	enabled, fsync := settings["appendonly"], settings["appendfsync"]
	if enabled != "yes" || fsync != "always" {
		return "", fmt.Errorf("appendonly is %q and appendfsync %q: start it with --appendonly yes --appendfsync always, so that it syncs every write as the others do", enabled, fsync)
	}
	version := "of unknown version"
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, "redis_version:"); ok {
			version = strings.TrimSpace(value)
		}
	}
	return "Redis " + version + " with appendfsync always", nil
}

// describeZookeeper asks a server for its version. The question is the only one that every
// server answers unless it is configured not to.
func describeZookeeper(ctx context.Context, address string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, "srvr"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return "", err
	}
	return zookeeperText(string(answer)), nil
}

// zookeeperText formats the answer of ZooKeeper, which begins with
// "Zookeeper version: 3.8.4-..., built on ...".
func zookeeperText(answer string) string {
	version := "of unknown version"
	if rest, ok := strings.CutPrefix(answer, "Zookeeper version: "); ok {
		version, _, _ = strings.Cut(rest, "-")
		version, _, _ = strings.Cut(version, ",")
	}
	return "ZooKeeper " + version
}
