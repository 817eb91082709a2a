package uitest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/examples/internal/browsertest"
)

// With -v it prints what the page costs. It is not parallel: the others hold locks with short
// leases, and this one needs the processors.
func TestPage_TenThousandNamesAreUsable(t *testing.T) {
	b, ok := browsertest.Start(t)
	if !ok {
		return
	}
	const names, sessions = 10000, 1000
	etcd := embedtest.Start(t)
	occupy(t, etcd.Client(t), names, sessions)
	if _, err := program(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s := serve(t, etcd.Endpoints())
	t.Logf("ready to serve after %v", since(began))

	began = time.Now()
	p := b.Open(t, s.url, false)
	p.AwaitCount("#rows tr", 50)
	isLive(p)
	t.Logf("open and live in the browser after %v", since(began))
	p.AwaitText("#range", "1 to 50 of 10000, page 1 of 200")
	p.AwaitText("#headline", "10,000 names are held, and 100 wait for 100 of them.")
	began = time.Now()
	p.Do(chromedp.SendKeys(chromedp.CSS("#prefix"), "job/0987"))
	p.AwaitCount("#rows tr", 10)
	t.Logf("filtered %v after the first key", since(began))
	began = time.Now()
	l := lock(t, client(t, etcd, "orders"), "job/0987x", "v")
	p.AwaitText(cell("job/0987x", "Token"), fmt.Sprint(l.Token()))
	t.Logf("a lock is shown after %v", since(began))
	p.Do(chromedp.Navigate(s.url + "/?page=200"))
	p.AwaitText("#range", "9951 to 10000 of 10001, page 200 of 201")

	for _, path := range []string{"/", "/?page=100", "/?order=waiting", "/?prefix=job/05", "/state.json"} {
		began = time.Now()
		size := fetch(t, s.url+path)
		t.Logf("%s: %d KB in %v", path, size>>10, since(began))
	}
	measure(t, p, s.pid)
}

// measure prints what a server uses while a page is open.
func measure(t *testing.T, p *browsertest.Tab, pid int) {
	t.Helper()
	used, at := processors(pid), time.Now()
	p.Await(fmt.Sprintf("performance.now() > %d", 10_000), true) // ten seconds after it was opened
	p.AwaitText("#live", "live")
	t.Logf("memory %s KB; %.1f %% of a processor with one open page", memory(pid), float64(processors(pid)-used)/time.Since(at).Seconds())
}

func since(began time.Time) time.Duration { return time.Since(began).Round(time.Millisecond) }

// occupy puts names as so many sessions do, each with a record of its own. Others wait for
// each hundredth.
func occupy(t *testing.T, etcd *clientv3.Client, names, sessions int) {
	t.Helper()
	leases := make([]clientv3.LeaseID, sessions)
	var ops []clientv3.Op
	for i := range leases {
		lease, err := etcd.Grant(within(t), 3600)
		if err != nil {
			t.Fatal(err)
		}
		leases[i] = lease.ID
		owner, err := json.Marshal(locker.Owner{Host: fmt.Sprintf("host-%d.example", i), PID: 4000 + i, Program: "worker", Start: time.Now().UTC(), Version: locker.Version})
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("locker//%x", lease.ID), string(owner), clientv3.WithLease(lease.ID)))
	}
	for i := range names {
		lease := leases[i%sessions]
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("locker/job%%2F%05d/%x", i, lease), fmt.Sprintf("10.0.%d.%d:8080", i/256, i%256), clientv3.WithLease(lease)))
	}
	for i := 0; i < names; i += 100 {
		lease := leases[(i+1)%sessions]
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("locker/job%%2F%05d/%x", i, lease), "next", clientv3.WithLease(lease)))
	}
	for len(ops) > 0 {
		n := min(len(ops), 100)
		if _, err := etcd.Txn(within(t)).Then(ops[:n]...).Commit(); err != nil {
			t.Fatal(err)
		}
		ops = ops[n:]
	}
}

// fetch returns the size of an answer.
func fetch(t *testing.T, address string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), "GET", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d, %v", address, resp.StatusCode, err)
	}
	return len(text)
}

// memory returns how many KB a process uses, as Linux reports it, or "" elsewhere.
func memory(pid int) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kilobytes, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return kilobytes
}

// processors returns how much time of processors a process has used, in hundredths of a
// second, as Linux reports it, or 0 elsewhere.
func processors(pid int) (total int) {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if fields := strings.Fields(string(stat)); len(fields) > 14 {
		for _, field := range fields[13:15] {
			n, _ := strconv.Atoi(field)
			total += n
		}
	}
	return total
}
