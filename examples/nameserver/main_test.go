package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestFlagsStandBeforeBetweenAndAfterTheArguments(t *testing.T) {
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

func TestAMistakeIsExplained(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"nonsense":                                     `what is "nonsense"?`,
		"serve now":                                    "serve takes no arguments",
		"serve -ttl 3":                                 `"3"`,
		"serve -zone a..b":                             `"a..b" is not a zone`,
		"serve -answer-ttl -1s":                        "TTL of answers",
		"serve -negative-ttl 25h":                      "TTL of answers",
		"register -listen 127.0.0.1:0 a b":             "-listen",
		"register www.example.com":                     "register needs NAME and ADDR[,ADDR...]",
		"watch a b":                                    "watch needs NAME",
		"-ttl 3s now":                                  "the demonstration takes no arguments",
		"watch www.example.com":                        "-endpoints is missing",
		"watch www -endpoints 127.0.0.1:1":             "www is not in the zone example.com (www.example.com?)",
		"serve -endpoints 127.0.0.1:1,nonsense":        `"nonsense" is no endpoint`,
		"serve -endpoints 127.0.0.1:65536":             `"127.0.0.1:65536" is no endpoint`,
		"serve -endpoints http://127.0.0.1":            `"http://127.0.0.1" is no endpoint`,
		"serve -endpoints ftp://127.0.0.1:1":           `"ftp://127.0.0.1:1" is no endpoint`,
		"serve -endpoints :1":                          `":1" is no endpoint`,
		"watch www.example.org -endpoints 127.0.0.1:1": "www.example.org is not in the zone example.com",
		"register -endpoints 127.0.0.1:1 www.example.com 192.0.2":   `"192.0.2" is not an IP address`,
		"register -endpoints 127.0.0.1:1 w*w.example.com 192.0.2.1": `'*' is none of`,
	} {
		var out, log output
		err := run(within(t), strings.Fields(line), &out, &log)
		if !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), want) || out.String()+log.String() != "" {
			t.Errorf("%s: %v, want %q; it said %s%s", line, err, want, &out, &log)
		}
	}
	for _, line := range []string{"-h", "serve -h", "register a -help", "watch --help"} {
		if err := run(t.Context(), strings.Fields(line), nil, nil); !errors.Is(err, flag.ErrHelp) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestTroubleIsExplained(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	taken := serving(t, clientOf(t, etcd.Client(t), time.Minute), defaults(), t.Output())
	frozen := etcd.Proxy(t)
	frozen.Freeze()
	mute, guarded := frozen.Endpoints()[0], embedtest.Start(t, embedtest.WithAuth()).Endpoints()[0]
	var wg sync.WaitGroup
	for line, want := range map[string]string{
		"serve -listen " + taken:                           "cannot listen on " + taken,
		"-listen " + taken:                                 "cannot listen on " + taken,
		"serve -listen nonsense":                           "cannot listen on nonsense",
		"serve -listen 127.0.0.1:0 -endpoints 127.0.0.1:1": "cannot reach the etcd at 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused; is it running?",
		"watch www.example.com -endpoints " + mute:         "cannot reach the etcd at " + mute + ": it does not answer; is it running?",
		"watch www.example.com -endpoints " + guarded:      "cannot use the etcd at " + guarded + ": etcdserver: user name is empty",
	} {
		wg.Go(func() {
			var out, log output
			if err := run(within(t), strings.Fields(line), &out, &log); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s: %v, want %q", line, err, want)
			}
		})
	}
	wg.Wait()
}

func TestTheDemonstrationHandsTheNameOver(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	var out, log output
	done := make(chan error, 1)
	go func() { done <- run(ctx, strings.Fields("-ttl 5s -listen 127.0.0.1:0"), &out, &log) }()
	t.Cleanup(func() { cancel(enough) })

	address := out.between(t, "is served on ", ";")
	host, port, _ := strings.Cut(address, ":")
	out.await(t, fmt.Sprintf("\tdig @%s -p %s www.example.com\n", host, port))
	first := out.between(t, "holding www.example.com as ", " ")
	served := func(ip string) func() bool {
		return func() bool {
			reply := ask(t, "udp", address, question("www.example.com.", dns.TypeA))
			return slices.Equal(data(reply.Answer), []string{"A " + ip})
		}
	}
	eventually(t, "the first is served", served(first))
	other := map[string]string{"192.0.2.1": "192.0.2.2", "192.0.2.2": "192.0.2.1"}[first]
	out.await(t, "is cut off from etcd")
	out.await(t, "lost www.example.com (expired); waiting for it again")
	out.await(t, "holding www.example.com as "+other)
	out.await(t, "watch  www.example.com is "+other)
	eventually(t, "the other is served", served(other))
	out.await(t, "is back")
	eventually(t, "the first is served again", served(first))
	eventually(t, "the first knows that", func() bool {
		return strings.Count(out.String(), "holding www.example.com as "+first) == 2
	})

	cancel(enough)
	select {
	case err := <-done:
		if !errors.Is(err, enough) && err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it does not end")
	}
	out.await(t, "gave www.example.com back")
	if log.String() != "" {
		t.Errorf("it complained: %s", &log)
	}
}

func TestInterruptedWhileAHostIsCutOffTheDemonstrationEndsAtOnce(t *testing.T) {
	t.Parallel()
	etcd := embedtest.Start(t)
	client := clientOf(t, etcd.Client(t), time.Minute)
	var out output
	const name = "www.example.com"
	alpha, err := newHost(etcd.Endpoints(), defaults(), "192.0.2.1", journal(&out, ""))
	if err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(context.Background())
	g, going := errgroup.WithContext(ctx)
	g.Go(func() error { return hold(going, alpha.client, name, alpha.address, alpha.journal) })
	g.Go(func() error { return breakOff(going, client, name, time.Second, alpha) }) // in the rhythm of a shorter lease
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

	out.await(t, "is cut off from etcd")
	interrupt()
	interrupted := time.Now()
	if err := unlessInterrupted(ctx, ended()); err != nil {
		t.Error(err)
	}
	if took := time.Since(interrupted); took > 10*time.Second {
		t.Errorf("it took %v of a lease of %v", took, defaults().lifetimes.lease)
	}
	if held := keys(t, etcd, "locker/"+name+"/"); len(held) > 0 {
		t.Errorf("it left %q", held)
	}
}

func TestNoRecordIsKeptBecauseNobodyReadsTheOutput(t *testing.T) {
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
		t.Fatalf("it said %q, %v", line, err)
	}
	interrupt()
	eventually(t, "the record is given back", func() bool { return len(keys(t, etcd, "locker/www.example.com/")) == 0 })
}
