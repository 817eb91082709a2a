package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

const manyNames = 10_000

// nth returns the i-th name and its address.
func nth(i int) (name, address string) {
	ip := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
	return fmt.Sprintf("host%d.rack%d.example.com", i, i%100), ip.String()
}

// registerMany makes one client hold all the names.
func registerMany(ctx context.Context, client *locker.Client) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(500)
	for i := range manyNames {
		g.Go(func() error {
			name, address := nth(i)
			_, err := client.Lock(ctx, name, address)
			return err
		})
	}
	return g.Wait()
}

func TestServer_AnswersForTenThousandNames(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := clientOf(t, etcd.Client(t), time.Minute)
	began := time.Now()
	if err := registerMany(testContext(t), client); err != nil {
		t.Fatal(err)
	}
	t.Logf("registered in %v", time.Since(began).Round(time.Millisecond))
	address := startServing(t, clientOf(t, etcd.Client(t), time.Minute), defaults(), t.Output())
	began = time.Now()
	g, ctx := errgroup.WithContext(testContext(t))
	const clients = 8
	for c := range clients {
		g.Go(func() error {
			for i := c; i < manyNames; i += clients {
				name, ip := nth(i)
				reply, err := exchange(ctx, newQuery(name+".", dns.TypeA), address)
				if err != nil {
					return err
				}
				if got := recordTexts(reply.Answer); !slices.Equal(got, []string{"A " + ip}) {
					return fmt.Errorf("%s is %q, want %s", name, got, ip)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("queried in %v", time.Since(began).Round(time.Millisecond))
	for name, want := range map[string]int{"rack7.example.com.": dns.RcodeSuccess, "rack100.example.com.": dns.RcodeNameError} {
		if reply := ask(t, "udp", address, newQuery(name, dns.TypeA)); reply.Rcode != want {
			t.Errorf("%s:\n%s", name, reply)
		}
	}
}

// exchange is like ask, but can be called from any goroutine of a test.
func exchange(ctx context.Context, query *dns.Msg, address string) (reply *dns.Msg, err error) {
	client := &dns.Client{Timeout: testTimeout / 6}
	for range 3 {
		var failed error
		if reply, _, failed = client.ExchangeContext(ctx, query, address); failed == nil {
			return reply, nil
		}
		err = errors.Join(err, failed)
	}
	return nil, err
}

// BenchmarkQueries sends queries over UDP on the loopback interface, for names out of ten
// thousand. The clients share the machine with the server.
func BenchmarkQueries(b *testing.B) {
	etcd := embedtest.Start(b)
	client := clientOf(b, etcd.Client(b), time.Minute)
	if err := registerMany(testContext(b), client); err != nil {
		b.Fatal(err)
	}
	address := startServing(b, client, defaults(), b.Output())
	for _, c := range []struct{ what, suffix string }{{"held", "."}, {"NXDOMAIN", ".example.com."}} {
		b.Run(c.what, func(b *testing.B) {
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := dns.DialTimeout("udp", address, testTimeout)
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				asker := &dns.Client{Timeout: testTimeout}
				for i := 0; pb.Next(); i = (i + 1) % manyNames {
					name, _ := nth(i)
					reply, _, err := asker.ExchangeWithConn(newQuery(name+c.suffix, dns.TypeA), conn)
					if err != nil || (len(reply.Answer) == 1) != (c.what == "held") {
						b.Errorf("%v, %v", reply, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}
