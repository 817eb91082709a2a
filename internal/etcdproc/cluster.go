//go:build unix

package etcdproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Options say what Start starts.
type Options struct {
	Program string    // of etcd, version 3.4 or later; see Build
	Members int       // 1 or 3; 0 means 1
	Dir     string    // for the data; if empty, a temporary one, which may be in memory, and which Close removes
	Flags   []string  // further flags of each member
	TLS     *TLS      // for the client address; nil for none. See Authority
	Log     io.Writer // what the members print; nil to drop it
}

// Cluster is etcd in one process or in three.
type Cluster struct {
	members []*Member
	dir     string // to be removed; empty if it is the caller's
}

// Start returns a cluster of which every member serves; etcd syncs its log to the disk, unless flags say
// otherwise. ctx bounds the start only: the cluster runs until Close.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.Members == 0 {
		o.Members = 1
	}
	if o.Members != 1 && o.Members != 3 {
		return nil, fmt.Errorf("start etcd: %d members, want 1 or 3", o.Members)
	}
	c := &Cluster{}
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "locker-etcd-")
		if err != nil {
			return nil, fmt.Errorf("start etcd: %w", err)
		}
		o.Dir, c.dir = dir, dir
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	for attempt := 1; ; attempt++ {
		err := c.start(ctx, o)
		if err == nil {
			return c, nil
		}
		c.kill()
		if !errors.Is(err, errPortTaken) || attempt == attempts {
			c.Close()
			return nil, fmt.Errorf("start etcd: %w", err)
		}
		// The members remember their peers' addresses, so they begin from nothing.
		for _, m := range c.members {
			_ = os.RemoveAll(m.data)
		}
	}
}

// attempts is how often a port may turn out to be taken.
const attempts = 5

func (c *Cluster) start(ctx context.Context, o Options) error {
	addresses, err := freeAddresses(3 * o.Members)
	if err != nil {
		return err
	}
	clients, peers, metrics := addresses[:o.Members], addresses[o.Members:2*o.Members], addresses[2*o.Members:]
	var initial []string
	for i, peer := range peers {
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, peer))
	}
	scheme := "http"
	var secure []string
	if o.TLS != nil {
		scheme, secure = "https", []string{"--cert-file=" + o.TLS.Cert, "--key-file=" + o.TLS.Key}
		if o.TLS.CA != "" {
			secure = append(secure, "--client-cert-auth", "--trusted-ca-file="+o.TLS.CA)
		}
	}
	log := &sharedWriter{w: o.Log}
	c.members = nil
	for i := range o.Members {
		name := fmt.Sprintf("m%d", i)
		client, peer, metric := scheme+"://"+clients[i], "http://"+peers[i], "http://"+metrics[i]
		m := &Member{
			endpoint: client,
			peer:     peer,
			metrics:  metric,
			program:  o.Program,
			data:     filepath.Join(o.Dir, name),
			log:      &tail{all: log},
		}
		m.args = append([]string{
			"--name=" + name, "--data-dir=" + m.data, "--logger=zap", "--log-outputs=stderr",
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--listen-metrics-urls=" + metric, "--initial-cluster=" + strings.Join(initial, ","),
		}, append(secure, o.Flags...)...)
		if err := os.Mkdir(m.data, 0o700); err != nil {
			return err
		}
		c.members = append(c.members, m)
	}
	for _, m := range c.members {
		if err := m.launch(); err != nil {
			return err
		}
	}
	return c.ready(ctx)
}

// ready waits until all members serve, or one has ended.
func (c *Cluster) ready(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error)
	for _, m := range c.members {
		go func() { results <- m.ready(ctx) }()
	}
	for range c.members {
		if result := <-results; result != nil && err == nil {
			err = result
			cancel()
		}
	}
	return err
}

// freeAddresses asks the system for ports that are free now.
func freeAddresses(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all of them at the end, so that no port comes twice
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}

// Endpoints returns the client addresses of all members.
func (c *Cluster) Endpoints() []string {
	endpoints := make([]string, len(c.members))
	for i, m := range c.members {
		endpoints[i] = m.endpoint
	}
	return endpoints
}

// Member returns the member with that index, from 0.
func (c *Cluster) Member(i int) *Member { return c.members[i] }

// Close ends all members at once, waits for them, and removes the data unless its directory was given.
func (c *Cluster) Close() {
	c.kill()
	if c.dir != "" {
		_ = os.RemoveAll(c.dir)
	}
}

func (c *Cluster) kill() {
	for _, m := range c.members {
		m.Kill()
	}
}
