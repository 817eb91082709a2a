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

// Proxy is the network between clients and members: it has a TCP listener for each
// member, in the order of [Server.Endpoints], and forwards bytes unless a fault is
// injected. Its methods may be called from any goroutine and do not block.
//
// A fault affects all members, or only those whose indexes are given; an index out of
// range panics. It affects every byte sent after the method has returned; bytes sent
// earlier may still arrive. Faults accumulate, and all except Reset last until
// [Proxy.Heal].
//
// etcd's client holds requests until it has a connection. So if a fault leaves it without
// one, requests do not fail, but wait until their context ends.
type Proxy struct {
	links   []*link
	schemes []string // of the endpoints, by index, such as "http://"; may be empty
	config  func(endpoints []string) clientv3.Config
}

// NewProxy opens a proxy in front of the members at the given endpoints, which need not
// belong to a Server. An endpoint is an address such as "http://10.0.0.1:2379", with or
// without the scheme; otherwise NewProxy returns an error. With TLS, the members'
// certificates must be valid for 127.0.0.1. The caller must call [Proxy.Close].
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

// Proxy opens a proxy in front of the cluster. It is closed when the test ends. Each call
// opens a new proxy with its own faults.
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

// ClientConfig is like [Server.ClientConfig], but through the proxy. For a proxy of
// [NewProxy] it has no TLS configuration and no credentials.
func (p *Proxy) ClientConfig() clientv3.Config {
	return p.config(p.Endpoints())
}

// Client is like [Server.Client], but through the proxy.
func (p *Proxy) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return newClient(tb, p.ClientConfig())
}

// Cut resets all connections, and new ones as soon as they are accepted.
func (p *Proxy) Cut(members ...int) {
	p.each(members, (*link).cutOff)
}

// Reset resets all current connections. New ones are not affected.
func (p *Proxy) Reset(members ...int) {
	p.each(members, func(l *link) { l.reset(func(*conn) bool { return true }) })
}

// Freeze keeps connections open and accepts new ones, but forwards nothing in either
// direction. After [Proxy.Thaw], everything that was sent arrives.
func (p *Proxy) Freeze(members ...int) {
	p.each(members, func(l *link) { l.change(func() { l.frozen = true }) })
}

// FreezeConnections is like [Proxy.Freeze], but affects only the current connections: new
// ones work. To both ends such a connection looks as if all its packets were silently
// dropped: nothing arrives, not even the news that the other end has closed the
// connection. (The local kernel still acknowledges what is sent, so TCP's own timeouts do
// not occur.)
func (p *Proxy) FreezeConnections(members ...int) {
	p.each(members, func(l *link) { l.change(func() { l.setConnsFrozen(true) }) })
}

// Thaw undoes [Proxy.Freeze] and [Proxy.FreezeConnections].
func (p *Proxy) Thaw(members ...int) {
	p.each(members, func(l *link) { l.change(l.thaw) })
}

// Delay delays every byte by d in each direction, so a request takes 2d longer. It does
// not reduce throughput. It affects all members, including bytes that are already in
// transit. Zero turns it off.
func (p *Proxy) Delay(d time.Duration) {
	p.each(nil, func(l *link) { l.change(func() { l.delay = d }) })
}

// Throttle limits the throughput to each member, and from it, to the given number of
// bytes per second. All connections to a member share that bandwidth and take turns. As
// on any slow link, a faster sender is blocked: few bytes are in transit, and the rest
// waits in the sender's own buffers. Throttle affects all members. [Proxy.Delay] is added
// to it. Zero or less turns it off.
func (p *Proxy) Throttle(bytesPerSecond int) {
	p.each(nil, func(l *link) { l.change(func() { l.throttle(bytesPerSecond) }) })
}

// DropReplies forwards what clients send and drops what members send, including the end
// of a connection. Only connections that are already open carry requests: the handshake
// of a new one does not complete. A connection that lost bytes cannot be used again, so
// [Proxy.Heal] resets it.
func (p *Proxy) DropReplies(members ...int) {
	p.each(members, func(l *link) { l.change(func() { l.dropping = true }) })
}

// Heal ends all faults on all members. It also resets the connections whose replies were
// dropped.
func (p *Proxy) Heal() {
	p.each(nil, func(l *link) {
		l.change(l.heal)
		l.reset(func(c *conn) bool { return c.damaged })
	})
}

// Close resets all connections and returns when all goroutines of the proxy have ended.
// Close is idempotent.
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
