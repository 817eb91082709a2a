package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestParse_AcceptsFlagsBeforeBetweenAndAfterArguments(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"-endpoints a:1,b:2 -ttl 3s -zone Test. -prefix p www.test 192.0.2.1",
		"www.test -endpoints a:1,b:2 -ttl=3s --zone test 192.0.2.1 -prefix p",
		"www.test 192.0.2.1 --endpoints=a:1,b:2 -ttl 3s -zone TEST -prefix p",
	} {
		s, arguments, err := parse(commands["register"], strings.Fields(line))
		if err != nil || !slices.Equal(arguments, []string{"www.test", "192.0.2.1"}) || !slices.Equal(s.endpoints, []string{"a:1", "b:2"}) ||
			s.zone != "test." || s.prefix != "p" || s.lifetimes.lease != 3*time.Second {
			t.Errorf("%s: %v, %+v, %v", line, arguments, s, err)
		}
	}
}

func TestParse_AcceptsSharedAnywhere(t *testing.T) {
	t.Parallel()
	for line, shared := range map[string]bool{
		"a b":               false,
		"-shared a b":       true,
		"a -shared b":       true,
		"a b --shared":      true,
		"-shared=false a b": false,
	} {
		s, arguments, err := parse(commands["register"], strings.Fields(line+" -endpoints 127.0.0.1:1"))
		if err != nil || s.shared != shared || !slices.Equal(arguments, []string{"a", "b"}) {
			t.Errorf("%s: shared %v, %q, %v", line, s.shared, arguments, err)
		}
	}
}

func TestRun_ExplainsAnInvalidCommandLine(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"nonsense":                                     `unknown command "nonsense"`,
		"serve now":                                    "serve takes no arguments",
		"serve -ttl 3":                                 `"3"`,
		"serve -zone a..b":                             `"a..b" is not a zone`,
		"serve -answer-ttl -1s":                        "-answer-ttl and -negative-ttl must",
		"serve -shared":                                "-shared",
		"watch -shared www.example.com":                "-shared",
		"serve -negative-ttl 25h":                      "-answer-ttl and -negative-ttl must",
		"register -listen 127.0.0.1:0 a b":             "-listen",
		"register www.example.com":                     "register needs NAME and ADDR[,ADDR...]",
		"watch a b":                                    "watch needs NAME",
		"-ttl 3s now":                                  "the demonstration takes no arguments",
		"watch www.example.com":                        "-endpoints is required",
		"watch www -endpoints 127.0.0.1:1":             "www is not in the zone example.com (www.example.com?)",
		"serve -endpoints 127.0.0.1:1,nonsense":        `invalid endpoint "nonsense"`,
		"serve -endpoints 127.0.0.1:65536":             `invalid endpoint "127.0.0.1:65536"`,
		"serve -endpoints http://127.0.0.1":            `invalid endpoint "http://127.0.0.1"`,
		"serve -endpoints ftp://127.0.0.1:1":           `invalid endpoint "ftp://127.0.0.1:1"`,
		"serve -endpoints :1":                          `invalid endpoint ":1"`,
		"watch www.example.org -endpoints 127.0.0.1:1": "www.example.org is not in the zone example.com",
		"register -endpoints 127.0.0.1:1 www.example.com 192.0.2":   `"192.0.2" is not an IP address`,
		"register -endpoints 127.0.0.1:1 w*w.example.com 192.0.2.1": `'*' is not a letter`,
	} {
		var out, log output
		err := run(testContext(t), strings.Fields(line), &out, &log)
		if !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), want) || out.String()+log.String() != "" {
			t.Errorf("%s: %v, want %q; output: %s%s", line, err, want, &out, &log)
		}
	}
	for _, line := range []string{"-h", "serve -h", "register a -help", "watch --help"} {
		if err := run(t.Context(), strings.Fields(line), nil, nil); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestRun_ExplainsWhyItCannotStart(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	taken := startServing(t, clientOf(t, etcd.Client(t), time.Minute), defaults(), t.Output())
	frozen := etcd.Proxy(t)
	frozen.Freeze()
	silent, withAuth := frozen.Endpoints()[0], embedtest.Start(t, embedtest.WithAuth()).Endpoints()[0]
	var wg sync.WaitGroup
	for line, want := range map[string]string{
		"serve -listen " + taken:                           "cannot listen on " + taken,
		"-listen " + taken:                                 "cannot listen on " + taken,
		"serve -listen nonsense":                           "cannot listen on nonsense",
		"serve -listen 127.0.0.1:0 -endpoints 127.0.0.1:1": "cannot reach etcd at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused; is it running?",
		"watch www.example.com -endpoints " + silent:       "cannot reach etcd at " + silent + ": no answer; is it running?",
		"watch www.example.com -endpoints " + withAuth:     "cannot use etcd at " + withAuth + ": etcdserver: user name is empty",
	} {
		wg.Go(func() {
			var out, log output
			if err := run(testContext(t), strings.Fields(line), &out, &log); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s: %v, want %q", line, err, want)
			}
		})
	}
	wg.Wait()
}

func TestDemonstration_HandsTheNameOver(t *testing.T) {
	t.Parallel()
	var out output
	stop := startDemonstration(t, &out)
	address := out.between(t, "serving example.com on ", " ")
	host, port, _ := strings.Cut(address, ":")
	out.await(t, fmt.Sprintf("\tdig @%s -p %s www.example.com\n", host, port))
	first := out.between(t, "holding www.example.com as ", " ")
	other := map[string]string{"192.0.2.1": "192.0.2.2", "192.0.2.2": "192.0.2.1"}[first]
	served := func(name string, addresses ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s is served as %v", name, addresses), func() bool {
			got := recordTexts(ask(t, "udp", address, newQuery(name+".", dns.TypeA)).Answer)
			slices.Sort(got)
			return slices.Equal(got, addresses)
		})
	}
	served("www.example.com", "A "+first)
	served("pool.example.com", "A 192.0.2.1", "A 192.0.2.2")
	out.await(t, "disconnected from etcd")
	out.await(t, "lost www.example.com (expired); waiting for it again")
	out.await(t, "holding www.example.com as "+other)
	out.await(t, "watch  www.example.com is "+other)
	served("www.example.com", "A "+other)
	eventually(t, "the other host alone holds the shared name", func() bool {
		_, after, _ := strings.Cut(out.String(), "disconnected from etcd")
		alone := regexp.MustCompile(`watch  pool\.example\.com is ` + other + ` \(token \d+\)\n`)
		return alone.MatchString(after)
	})
	out.await(t, "reconnected to etcd")
	served("pool.example.com", "A 192.0.2.1", "A 192.0.2.2")
	served("www.example.com", "A "+first)
	eventually(t, "the first host reports it", func() bool {
		return strings.Count(out.String(), "holding www.example.com as "+first) == 2
	})
	stop()
	out.await(t, "released www.example.com")
}

// startDemonstration runs the demonstration until stop is called, or the test ends.
func startDemonstration(t *testing.T, out *output) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted by the test")
	var log output
	done := make(chan error, 1)
	go func() { done <- run(ctx, strings.Fields("-ttl 5s -listen 127.0.0.1:0"), out, &log) }()
	stop = sync.OnceFunc(func() {
		cancel(interrupted)
		select {
		case err := <-done:
			if !errors.Is(err, interrupted) && err != nil {
				t.Errorf("the demonstration returned %v", err)
			}
		case <-time.After(testTimeout):
			t.Error("the demonstration does not end")
		}
		if log.String() != "" {
			t.Errorf("the demonstration logged: %s", &log)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestDemonstration_EndsAtOnceWhenInterruptedWhileAHostIsDisconnected(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := clientOf(t, etcd.Client(t), time.Minute)
	var out output
	const name = "www.example.com"
	alpha, err := newDemoHost(etcd.Endpoints(), defaults(), "192.0.2.1", newEventLog(&out, ""))
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(context.Background())
	g, groupCtx := errgroup.WithContext(ctx)
	g.Go(func() error { return alpha.hold(groupCtx, name) })
	g.Go(func() error { return disconnectHolders(groupCtx, client, name, time.Second, alpha) }) // as if the lease were shorter
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	ended := sync.OnceValue(func() error { return <-done })
	t.Cleanup(func() {
		interrupt()
		if err := alpha.close(); err != nil {
			t.Error(err)
		}
		_ = ended()
	})

	out.await(t, "disconnected from etcd")
	interrupt()
	interrupted := time.Now()
	if err := ignoreInterrupt(ctx, ended()); err != nil {
		t.Error(err)
	}
	if took := time.Since(interrupted); took > 10*time.Second {
		t.Errorf("ending took %v with a lease of %v", took, defaults().lifetimes.lease)
	}
	if held := keysBelow(t, etcd, "locker/"+name+"/"); len(held) > 0 {
		t.Errorf("left in etcd: %q", held)
	}
}

func TestRegister_ReleasesTheRecordThoughNobodyReadsTheOutput(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	ctx, interrupt := context.WithCancel(context.Background())
	reader, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() {
		line := "register www.example.com 192.0.2.1 -ttl 1m -endpoints " + etcd.Endpoints()[0]
		done <- run(ctx, strings.Fields(line), stdout, t.Output())
	}()
	t.Cleanup(func() {
		interrupt()
		reader.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(reader).ReadString('\n'); err != nil || !strings.Contains(line, "holding www.example.com") {
		t.Fatalf("first line: %q, %v", line, err)
	}
	interrupt()
	eventually(t, "the record is released", func() bool { return len(keysBelow(t, etcd, "locker/www.example.com/")) == 0 })
}
