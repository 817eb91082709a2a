package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// asProgram is set in the environment of a process that runs the program instead of its
// tests.
const asProgram = "NAMESERVER_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) == "" {
		goleak.VerifyTestMain(m)
	}
	go func() { // a process must not outlive its test
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	main()
}

// testTimeout bounds every wait of a test.
const testTimeout = 2 * time.Minute

// testContext returns a context that ends with the test or after testTimeout.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until condition returns true. Otherwise it fails the test.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(testTimeout); !condition(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
	}
}

// output collects what a program has written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(text []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(text)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await waits until the output contains text.
func (o *output) await(t testing.TB, text string) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(o.String(), text) {
		if time.Now().After(deadline) {
			t.Fatalf("the output does not contain %q:\n%s", text, o)
		}
		<-tick.C
	}
}

// between waits for before in the output, and returns the text that follows, up to after.
func (o *output) between(t testing.TB, before, after string) string {
	t.Helper()
	o.await(t, before)
	_, rest, _ := strings.Cut(o.String(), before)
	found, _, _ := strings.Cut(rest, after)
	return found
}

// holdAll returns a client that holds a lock for each name, with the given value.
func holdAll(t testing.TB, etcd *embedtest.Server, records map[string]string) *locker.Client {
	t.Helper()
	client := clientOf(t, etcd.Client(t), time.Minute)
	for name, value := range records {
		if _, err := client.Lock(testContext(t), name, value); err != nil {
			t.Fatal(err)
		}
	}
	return client
}

// share makes a client hold a name once for each value, shared. The first is the oldest.
func share(t testing.TB, client *locker.Client, name string, values ...string) (locks []*locker.Lock) {
	t.Helper()
	for _, value := range values {
		l, err := client.Lock(testContext(t), name, value, locker.WithShared())
		if err != nil {
			t.Fatal(err)
		}
		locks = append(locks, l)
	}
	return locks
}

// defaults returns the settings of the tests.
func defaults() settings {
	return settings{
		zone:      "example.com.",
		prefix:    locker.DefaultPrefix,
		listen:    "127.0.0.1:0",
		lifetimes: lifetimes{lease: time.Minute, answer: 7 * time.Second, negative: 3 * time.Second},
	}
}

// startServing runs a server until the test ends, and returns its address.
func startServing(t testing.TB, client *locker.Client, s settings, log io.Writer) (address string) {
	t.Helper()
	server, err := newDNSServer(testContext(t), client, s, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return server.address()
}

var networks = []string{"udp", "tcp"}

// ask sends a query, and repeats it if the answer was lost.
func ask(t testing.TB, network, address string, query *dns.Msg) *dns.Msg {
	t.Helper()
	client := &dns.Client{Net: network, Timeout: testTimeout / 6, UDPSize: dns.MaxMsgSize}
	var err error
	for range 3 {
		var reply *dns.Msg
		if reply, _, err = client.ExchangeContext(testContext(t), query, address); err == nil {
			return reply
		}
	}
	t.Fatal(err)
	return nil
}

// newQuery returns a simple query.
func newQuery(name string, rrtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, rrtype) }

// recordTexts returns the type and the content of each record.
func recordTexts(records []dns.RR) []string {
	texts := []string{}
	for _, record := range records {
		texts = append(texts, dns.TypeToString[record.Header().Rrtype]+" "+strings.TrimPrefix(record.String(), record.Header().String()))
	}
	return texts
}

// clientOf returns a Locker client over an etcd client. It is closed when the test ends.
func clientOf(t testing.TB, etcd *clientv3.Client, ttl time.Duration) *locker.Client {
	t.Helper()
	client, err := locker.New(etcd, locker.WithTTL(ttl))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}
