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

// dnsServer answers queries for a zone over UDP and TCP, on one port.
type dnsServer struct {
	zone    *zoneHandler
	records *locker.Cache
	udp     *net.UDPConn
	tcp     net.Listener
}

// newDNSServer opens the sockets, and returns once it has loaded all records. The caller
// must call run, which closes them.
func newDNSServer(ctx context.Context, client *locker.Client, s settings, log *slog.Logger) (*dnsServer, error) {
	udp, tcp, err := listen(s.listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", s.listen, err)
	}
	records, err := client.NewCache(ctx, "") // the zone is at the end of a DNS name, so a prefix cannot select it
	if err != nil {
		udp.Close()
		tcp.Close()
		return nil, err
	}
	own := ownAddress(udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr())
	return &dnsServer{newZoneHandler(s.zone, records, own, s.lifetimes, log), records, udp, tcp}, nil
}

// ownAddress returns the address that the zone gives for its name server. There is none
// if the server listens on all addresses.
func ownAddress(listening netip.Addr) netip.Addr {
	if listening.IsUnspecified() {
		return netip.Addr{}
	}
	return listening.Unmap().WithZone("")
}

// listen opens both sockets. With port 0, the system picks a UDP port that may be taken
// for TCP, so listen tries again.
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

// address returns the address on which the server listens.
func (s *dnsServer) address() string { return s.udp.LocalAddr().String() }

// run answers queries until ctx ends, and finishes those in progress.
func (s *dnsServer) run(ctx context.Context) error {
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
			defer start() // also if it fails to start
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
