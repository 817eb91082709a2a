package embedtest

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"google.golang.org/grpc"
)

// A member is one etcd of the cluster, which may be stopped.
type member struct {
	name   string
	dir    string
	client *address
	peer   *address

	// Peers reach each other through links, so that their connections end when
	// the member does: etcd leaves idle ones behind, for up to five seconds.
	relay *link

	mu   sync.Mutex // guards etcd and rpc
	etcd *embed.Etcd
	rpc  []*grpc.Server
}

func newMember(index int, dir string) (*member, error) {
	name := fmt.Sprintf("member%d", index)
	m := &member{name: name, dir: filepath.Join(dir, name)}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, m.release())
	}
	return m, nil
}

func (m *member) open() (err error) {
	if m.client, err = newAddress(); err != nil {
		return err
	}
	if m.peer, err = newAddress(); err != nil {
		return err
	}
	m.relay, err = newLink(m.peer.String())
	return err
}

// release gives back what open took.
func (m *member) release() error {
	var errs []error
	if m.relay != nil {
		errs = append(errs, m.relay.close())
	}
	for _, a := range []*address{m.client, m.peer} {
		if a != nil {
			errs = append(errs, a.release())
		}
	}
	return errors.Join(errs...)
}

// config returns the configuration to start m with. etcd alters the one it is
// given, so each start gets a new one.
func (s *Server) config(m *member) *embed.Config {
	c := embed.NewConfig()
	c.Name = m.name
	c.Dir = m.dir
	c.ListenClientUrls = []url.URL{mustURL(s.url(m.client.String()))}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.ListenPeerUrls = []url.URL{mustURL("http://" + m.peer.String())}
	c.AdvertisePeerUrls = []url.URL{mustURL("http://" + m.relay.String())}
	var cluster []string
	for _, m := range s.members {
		cluster = append(cluster, m.name+"=http://"+m.relay.String())
	}
	c.InitialCluster = strings.Join(cluster, ",")
	c.InitialClusterToken = s.dir
	c.SocketOpts.ReusePort = reusePort

	c.TickMs, c.ElectionMs = 10, 50
	if s.options.members > 1 {
		c.ElectionMs = 200
	}
	c.UnsafeNoFsync = true
	c.BcryptCost = 4 // the least there is
	c.EnableGRPCGateway = false
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(s.log.logger().Named(m.name))
	if s.options.tls {
		c.ClientTLSInfo = transport.TLSInfo{CertFile: s.certFile(), KeyFile: s.keyFile()}
	}
	for _, change := range s.options.config {
		change(c)
	}
	return c
}

// start starts m and does not wait until it is ready, which may take other
// members.
func (m *member) start(config *embed.Config) error {
	register := config.ServiceRegister
	config.ServiceRegister = func(rpc *grpc.Server) {
		m.mu.Lock()
		m.rpc = append(m.rpc, rpc)
		m.mu.Unlock()
		if register != nil {
			register(rpc)
		}
	}
	m.relay.change(func() { m.relay.cut = false })
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	m.mu.Lock()
	m.etcd = etcd
	m.mu.Unlock()
	return nil
}

// awaitReady returns when m serves requests.
func (m *member) awaitReady() error {
	m.mu.Lock()
	etcd := m.etcd
	m.mu.Unlock()
	if etcd == nil {
		return fmt.Errorf("%s: stopped", m.name)
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-etcd.Server.ReadyNotify():
		return nil
	case <-etcd.Server.StopNotify():
		return fmt.Errorf("%s: stopped by itself", m.name)
	case err := <-etcd.Err():
		return fmt.Errorf("%s: %w", m.name, err)
	case <-late.C:
		return fmt.Errorf("%s: not ready after %v", m.name, patience)
	}
}

// server returns the running etcd, or nil.
func (m *member) server() *etcdserver.EtcdServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.etcd == nil {
		return nil
	}
	return m.etcd.Server
}

// halt stops m as the end of its process would: connections break, and a leader
// does not hand over. What it returns closes what is left and waits for it.
func (m *member) halt() func() {
	m.mu.Lock()
	etcd, rpc := m.etcd, m.rpc
	m.etcd, m.rpc = nil, nil
	m.mu.Unlock()
	if etcd == nil {
		return func() {}
	}
	// Close alone is graceful: it waits for open watches, seconds on end, and
	// for ever if the member never got ready.
	for _, r := range rpc {
		r.Stop()
	}
	etcd.Server.HardStop()
	m.relay.sever()
	return etcd.Close
}

func mustURL(s string) url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return *u
}
