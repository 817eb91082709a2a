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

// profiles writes CPU profiles of this process and of etcd's first member during Locker's
// rounds.
type profiles struct {
	dir   string
	taken int // number of the last ones, part of their names: two rows may have the same ID
}

// during profiles fn, which takes about period.
func (p *profiles) during(ctx context.Context, name, endpoint string, period time.Duration, fn func() error) (err error) {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	p.taken++
	name = fmt.Sprintf("%s-%02d", name, p.taken)
	own, err := os.Create(filepath.Join(p.dir, name+".client.pprof"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	seconds := max(1, int(period/time.Second))
	server := make(chan error, 1)
	go func() { server <- fetch(ctx, endpoint, seconds, filepath.Join(p.dir, name+".etcd.pprof")) }()
	if err := pprof.StartCPUProfile(own); err != nil {
		return errors.Join(err, <-server)
	}
	err = fn()
	pprof.StopCPUProfile()
	return errors.Join(err, <-server)
}

// fetch requests a CPU profile from etcd and writes it to file.
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
