package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"time"
)

// profiles writes CPU profiles of what Locker's side does: of this process, and of etcd's first member.
type profiles struct{ dir string }

// during profiles fn, which takes about as long as period.
func (p *profiles) during(ctx context.Context, name, endpoint string, period time.Duration, fn func() error) (err error) {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	client, err := os.Create(filepath.Join(p.dir, name+".client.pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	seconds := max(1, int(period/time.Second))
	server := make(chan error, 1)
	go func() { server <- fetch(ctx, endpoint, seconds, filepath.Join(p.dir, name+".etcd.pprof")) }()
	if err := pprof.StartCPUProfile(client); err != nil {
		return errors.Join(err, <-server)
	}
	err = fn()
	pprof.StopCPUProfile()
	return errors.Join(err, <-server)
}

// fetch has an etcd profile itself.
func fetch(ctx context.Context, endpoint string, seconds int, file string) (err error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", endpoint, seconds), nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("profile etcd: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile etcd: %s; was it started with --enable-pprof?", resp.Status)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
