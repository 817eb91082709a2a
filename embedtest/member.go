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

// An etcdMember is one member of the cluster. It may be stopped.
type etcdMember struct {
	name   string
	dir    string
	client *address
	peer   *address

	// Peers connect to each other through links, so that their connections end when the
	// member does: etcd leaves idle connections open for up to five seconds.
	relay *link

	mu   sync.Mutex // guards etcd and rpc
	etcd *embed.Etcd
	rpc  []*grpc.Server
}

func newMember(index int, dir string) (*etcdMember, error) {
	name := fmt.Sprintf("member%d", index)
	m := &etcdMember{name: name, dir: filepath.Join(dir, name)}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, m.release())
	}
	return m, nil
}

func (m *etcdMember) open() (err error) {
	if m.client, err = newAddress(); err != nil {
		return err
	}
	if m.peer, err = newAddress(); err != nil {
		return err
	}
	m.relay, err = newLink(m.peer.String())
	return err
}

// release releases the resources that open acquired.
func (m *etcdMember) release() error {
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

// config returns the configuration with which m starts. Each start needs a new one
// because etcd modifies the one it is given.
func (s *Server) config(m *etcdMember) *embed.Config {
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
	c.BcryptCost = 4 // the minimum
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

// start starts m. It does not wait until m is ready, which may require other members.
func (m *etcdMember) start(config *embed.Config) error {
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

// awaitReady waits until m serves requests.
func (m *etcdMember) awaitReady() error {
	m.mu.Lock()
	etcd := m.etcd
	m.mu.Unlock()
	if etcd == nil {
		return fmt.Errorf("%s: stopped", m.name)
	}
	timeout := time.NewTimer(waitTimeout)
	defer timeout.Stop()
	select {
	case <-etcd.Server.ReadyNotify():
		return nil
	case <-etcd.Server.StopNotify():
		return fmt.Errorf("%s: stopped unexpectedly", m.name)
	case err := <-etcd.Err():
		return fmt.Errorf("%s: %w", m.name, err)
	case <-timeout.C:
		return fmt.Errorf("%s: not ready after %v", m.name, waitTimeout)
	}
}

// server returns the running etcd, or nil.
func (m *etcdMember) server() *etcdserver.EtcdServer {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.etcd == nil {
		return nil
	}
	return m.etcd.Server
}

// halt stops m as if its process had been killed: connections break, and a leader does
// not transfer its leadership. The function it returns closes what is left and waits
// until that has ended.
func (m *etcdMember) halt() func() {
	m.mu.Lock()
	etcd, rpc := m.etcd, m.rpc
	m.etcd, m.rpc = nil, nil
	m.mu.Unlock()
	if etcd == nil {
		return func() {}
	}
	// Close alone is graceful: it waits for open watches, which takes seconds, or forever
	// if the member was never ready.
	for _, r := range rpc {
		r.Stop()
	}
	etcd.Server.HardStop()
	m.relay.cutOff()
	return etcd.Close
}

func mustURL(s string) url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return *u
}
