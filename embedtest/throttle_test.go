package embedtest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
)

func TestThrottleLimitsTheThroughputOfALink(t *testing.T) {
	t.Parallel()
	const rate, size, connections = 1 << 20, 256 << 10, 4 // one second in total
	for name, swap := range map[string]bool{"to the member": false, "from the member": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, dial := pipe(t)
			proxy.Throttle(rate)
			start := time.Now()
			var wg sync.WaitGroup
			for range connections {
				from, to := dial()
				if swap {
					from, to = to, from
				}
				wg.Go(func() { from.Write(make([]byte, size)) })
				wg.Go(func() {
					if _, err := io.ReadFull(to, make([]byte, size)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			took := time.Since(start)
			t.Logf("%.0f KiB/s of %d", float64(connections*size>>10)/took.Seconds(), rate>>10)
			if took < 900*time.Millisecond || took > 15*time.Second {
				t.Errorf("%d bytes took %v", connections*size, took)
			}
		})
	}
}

func TestThrottleLimitsEachDirectionSeparately(t *testing.T) {
	t.Parallel()
	const size, rate, busy = 16 << 10, 32 << 10, 30
	proxy, dial := pipe(t)
	proxy.Throttle(rate)
	for range busy { // if both directions shared the bandwidth, the last connection would get a thirtieth
		a, _ := dial()
		go a.Write(make([]byte, 16<<20))
	}
	a, b := dial()
	start := time.Now()
	go b.Write(make([]byte, size))
	if _, err := io.ReadFull(a, make([]byte, size)); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the direction back took %v while the other was busy", took)
	}
}

func TestThrottleBlocksTheSender(t *testing.T) {
	t.Parallel()
	const much = 16 << 20
	proxy, dial := pipe(t)
	proxy.Throttle(16 << 10)
	from, _ := dial()
	from.SetWriteBuffer(64 << 10)
	from.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := from.Write(make([]byte, much))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 1<<20 {
		t.Errorf("%d bytes were accepted at once, %v", n, err)
	}
}

func TestThrottleTurnedOffReleasesWhatWaits(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	put(t, client, "key", "value")
	proxy.Throttle(1)
	wantTimeout(t, client, "key", "late")
	proxy.Throttle(0)
	put(t, client, "key", "value")
	proxy.Throttle(1)
	wantTimeout(t, client, "key", "late")
	proxy.Heal()
	put(t, client, "key", "value")
}

func TestThrottleAndDelayAddUp(t *testing.T) {
	t.Parallel()
	const size, rate, delay = 128 << 10, 256 << 10, 500 * time.Millisecond
	proxy, dial := pipe(t)
	from, to := dial()
	proxy.Throttle(rate)
	proxy.Delay(delay)
	start := time.Now()
	go from.Write(make([]byte, size))
	if _, err := io.ReadFull(to, make([]byte, size)); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < 950*time.Millisecond {
		t.Errorf("%d bytes took only %v", size, took)
	}
}

func TestThrottleSendsNothingWhileFrozen(t *testing.T) {
	t.Parallel()
	const size = 256 << 10
	proxy, dial := pipe(t)
	from, to := dial()
	proxy.Throttle(size) // one second in total
	proxy.Freeze()
	go from.Write(make([]byte, size))
	to.SetReadDeadline(time.Now().Add(1500 * time.Millisecond))
	if n, err := to.Read(make([]byte, size)); err == nil {
		t.Errorf("%d bytes passed while frozen", n)
	}
	proxy.Thaw()
	start := time.Now()
	to.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(to, make([]byte, size)); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < 500*time.Millisecond {
		t.Errorf("everything arrived within %v after the thaw", took)
	}
}

func TestFreezeConnectionsDoesNotAffectNewOnes(t *testing.T) {
	t.Parallel()
	_, proxy, client, _ := setup(t)
	put(t, client, "key", "value")
	proxy.FreezeConnections()
	wantTimeout(t, client, "key", "frozen")
	put(t, proxy.Client(t), "key", "new")
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_, err := client.Put(ctx, "key", "thawed")
		done <- err
	}()
	proxy.Thaw()
	if err := <-done; err != nil {
		t.Error(err)
	}
	proxy.FreezeConnections()
	wantTimeout(t, client, "key", "frozen")
	proxy.Heal()
	put(t, client, "key", "healed")
}

func TestFreezeConnectionsHidesThatTheOtherEndHasClosed(t *testing.T) {
	t.Parallel()
	for name, hangUp := range map[string]func(*net.TCPConn){
		"close": func(c *net.TCPConn) { c.Close() },
		"reset": func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy, dial := pipe(t)
			from, to := dial()
			proxy.FreezeConnections(0)
			hangUp(from)
			to.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the member noticed: %v", err)
			}
			proxy.Heal()
			to.SetReadDeadline(time.Now().Add(limit))
			if _, err := to.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("after the thaw: %v", err)
			}
		})
	}
}

func TestFreezeConnectionsAffectsOnlyTheGivenMembers(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t, embedtest.WithMembers(3))
	proxy := server.Proxy(t)
	var clients []*clientv3.Client
	for _, endpoint := range proxy.Endpoints() {
		config := proxy.ClientConfig()
		config.Endpoints = []string{endpoint}
		clients = append(clients, connect(t, config))
		put(t, clients[len(clients)-1], "key", "value")
	}
	proxy.FreezeConnections(0, 2)
	wantTimeout(t, clients[0], "key", "lost")
	wantTimeout(t, clients[2], "key", "lost")
	put(t, clients[1], "key", "passed")
	proxy.Reset(0)
	put(t, clients[0], "key", "reconnected")
	proxy.Thaw(2)
	put(t, clients[2], "key", "thawed")
}

// pipe returns a proxy in front of a listener, and a function that opens a connection
// through it and returns both ends.
func pipe(t *testing.T) (*embedtest.Proxy, func() (client, member *net.TCPConn)) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := embedtest.NewProxy(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(proxy.Close(), listener.Close()); err != nil {
			t.Error(err)
		}
	})
	return proxy, func() (client, member *net.TCPConn) {
		a, err := net.Dial("tcp", proxy.Endpoints()[0])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close() })
		b, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return a.(*net.TCPConn), b.(*net.TCPConn)
	}
}
