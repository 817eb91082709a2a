package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

// server answers for a zone by UDP and TCP, on one port.
type server struct {
	zone    *zone
	records *locker.Cache
	udp     *net.UDPConn
	tcp     net.Listener
}

// newServer listens, and returns when it has seen all records. Call run, which ends it.
func newServer(ctx context.Context, client *locker.Client, s settings, log *slog.Logger) (*server, error) {
	udp, tcp, err := listen(s.listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", s.listen, err)
	}
	records, err := client.NewCache(ctx, "") // names in the DNS have their zone at the end, so a prefix is of no use
	if err != nil {
		udp.Close()
		tcp.Close()
		return nil, err
	}
	own := ownAddress(udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr())
	return &server{newZone(s.zone, records, own, s.lifetimes, log), records, udp, tcp}, nil
}

// ownAddress is what the zone tells of its name server, which is nothing if it listens on all addresses.
func ownAddress(listening netip.Addr) netip.Addr {
	if listening.IsUnspecified() {
		return netip.Addr{}
	}
	return listening.Unmap().WithZone("")
}

// listen opens both sockets. With port 0 the system chooses one, which may be taken for TCP.
func listen(address string) (*net.UDPConn, net.Listener, error) {
	for attempt := 0; ; attempt++ {
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, nil, err
		}
		tcp, err := net.Listen("tcp", udp.LocalAddr().String())
		if err == nil {
			return udp.(*net.UDPConn), tcp, nil
		}
		udp.Close()
		if _, port, _ := net.SplitHostPort(address); port != "0" || attempt == 10 {
			return nil, nil, err
		}
	}
}

// address is where it listens.
func (s *server) address() string { return s.udp.LocalAddr().String() }

// run answers until ctx ends, and the queries that are under way then.
func (s *server) run(ctx context.Context) error {
	defer s.records.Close()
	g, ctx := errgroup.WithContext(ctx)
	for _, transport := range []*dns.Server{
		{PacketConn: s.udp, Handler: s.zone, UDPSize: maxUDP},
		{Listener: s.tcp, Handler: s.zone},
	} {
		started := make(chan struct{})
		start := sync.OnceFunc(func() { close(started) })
		transport.NotifyStartedFunc = start
		g.Go(func() error {
			defer start() // also if it did not come to that
			return transport.ActivateAndServe()
		})
		g.Go(func() error {
			<-ctx.Done()
			<-started
			bounded, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			return transport.ShutdownContext(bounded)
		})
	}
	return g.Wait()
}
