package embedtest

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Proxy is the network between clients and the members: one TCP listener for
// each member, in the order of [Server.Endpoints], that passes bytes on until
// told otherwise. Its methods may be called from any goroutine and do not block.
//
// Faults act on all members, or on those whose indexes are given; an index that
// does not exist panics. A fault holds for every byte sent after its method has
// returned; what was on its way before may still arrive. Faults add up, and all
// but Reset last until [Proxy.Heal].
//
// etcd's client keeps requests until it has a connection. Where a fault leaves
// none, requests do not fail, but wait until their context ends.
type Proxy struct {
	links   []*link
	schemes []string // of the endpoints, by index: "http://" and the like, or nothing
	config  func(endpoints []string) clientv3.Config
}

// NewProxy opens a proxy in front of the members at the given endpoints, which need
// not be those of a Server: "http://10.0.0.1:2379", or without the scheme. Over
// TLS, the members' certificates must be good for 127.0.0.1. It returns an error
// if an endpoint is not such an address. The caller must call [Proxy.Close].
func NewProxy(endpoints ...string) (*Proxy, error) {
	p := &Proxy{config: clientConfig}
	for _, endpoint := range endpoints {
		scheme, target := "", endpoint
		if i := strings.Index(endpoint, "://"); i >= 0 {
			scheme, target = endpoint[:i+len("://")], endpoint[i+len("://"):]
		}
		_, _, err := net.SplitHostPort(target)
		var l *link
		if err == nil {
			l, err = newLink(target)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("embedtest: proxy for %q: %w", endpoint, err), p.Close())
		}
		p.links, p.schemes = append(p.links, l), append(p.schemes, scheme)
	}
	return p, nil
}

// Proxy opens a proxy in front of the cluster, which is closed when the test
// ends. Each call opens another one, with faults of its own.
func (s *Server) Proxy(tb testing.TB) *Proxy {
	tb.Helper()
	p, err := NewProxy(s.Endpoints()...)
	if err != nil {
		tb.Fatal(err)
	}
	p.config = s.clientConfig
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
	})
	return p
}

// Endpoints returns the address of the proxy for each member, by index.
func (p *Proxy) Endpoints() []string {
	var endpoints []string
	for i, l := range p.links {
		endpoints = append(endpoints, p.schemes[i]+l.String())
	}
	return endpoints
}

// ClientConfig is [Server.ClientConfig] through the proxy. After [NewProxy] it is
// without trust and credentials.
func (p *Proxy) ClientConfig() clientv3.Config {
	return p.config(p.Endpoints())
}

// Client is [Server.Client] through the proxy.
func (p *Proxy) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return newClient(tb, p.ClientConfig())
}

// Cut resets the connections there are, and new ones as they come.
func (p *Proxy) Cut(members ...int) {
	p.each(members, (*link).sever)
}

// Reset resets the connections there are. New ones pass.
func (p *Proxy) Reset(members ...int) {
	p.each(members, func(l *link) { l.reset(func(*conn) bool { return true }) })
}

// Freeze keeps connections open, accepts new ones, and lets nothing pass in
// either direction. After [Proxy.Thaw] everything arrives that was sent.
func (p *Proxy) Freeze(members ...int) {
	p.each(members, func(l *link) { l.change(func() { l.frozen = true }) })
}

// FreezeConnections is [Proxy.Freeze] for the connections there are: new ones pass.
// To its two ends such a connection looks as if all of its packets were dropped in
// silence: nothing arrives, not even that the other end has hung up. (The kernel of this
// machine goes on acknowledging what is sent, so timeouts of TCP itself do not come.)
func (p *Proxy) FreezeConnections(members ...int) {
	p.each(members, func(l *link) { l.change(func() { l.freezeConns(true) }) })
}

// Thaw ends [Proxy.Freeze] and [Proxy.FreezeConnections].
func (p *Proxy) Thaw(members ...int) {
	p.each(members, func(l *link) { l.change(l.thaw) })
}

// Delay makes every byte take d longer in each direction, thus a request 2d,
// at no loss of throughput. It acts on all members, and on what is already under
// way. Zero turns it off.
func (p *Proxy) Delay(d time.Duration) {
	p.each(nil, func(l *link) { l.change(func() { l.delay = d }) })
}

// Throttle lets at most so many bytes a second pass to each member, and as many
// back. All connections to a member share that, each getting its turn. As on any
// narrow link, a sender that is faster is held up: little is under way, the rest
// waits in the sender's own buffers. It acts on all members. [Proxy.Delay] comes on
// top. Zero, or less, turns it off.
func (p *Proxy) Throttle(bytesPerSecond int) {
	p.each(nil, func(l *link) { l.change(func() { l.throttle(bytesPerSecond) }) })
}

// DropReplies passes what clients send and throws away what members send, the
// end of a connection included. A client needs a connection from before: no new
// one gets through the handshake. A connection that lost something is of no
// further use, so [Proxy.Heal] resets it.
func (p *Proxy) DropReplies(members ...int) {
	p.each(members, func(l *link) { l.change(func() { l.dropping = true }) })
}

// Heal ends all faults on all members. It also resets the connections whose
// replies were dropped.
func (p *Proxy) Heal() {
	p.each(nil, func(l *link) {
		l.change(l.heal)
		l.reset(func(c *conn) bool { return c.maimed })
	})
}

// Close resets all connections, and returns when everything that the proxy runs
// has ended. Closing it again does nothing.
func (p *Proxy) Close() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

func (p *Proxy) each(members []int, f func(*link)) {
	if len(members) == 0 {
		for _, l := range p.links {
			f(l)
		}
		return
	}
	for _, i := range members {
		if i < 0 || i >= len(p.links) {
			panic(fmt.Sprintf("embedtest: no member %d among %d", i, len(p.links)))
		}
		f(p.links[i])
	}
}
