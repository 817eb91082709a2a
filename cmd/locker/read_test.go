package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestGet_PrintsTheValuesOfHoldersAndFailsWithoutOne(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, worker(t, b), "a", "one")
	locktest.Lock(t, worker(t, b), "several", "first", locker.WithLimit(2))
	locktest.Lock(t, worker(t, b), "several", "second", locker.WithLimit(2))
	if got := call(t, b, "get", "a").want(t, 0); got.stdout != "one\n" {
		t.Errorf("printed %q", got.stdout)
	}
	if got := call(t, b, "get", "several").want(t, 0); got.stdout != "first\nsecond\n" {
		t.Errorf("printed %q", got.stdout)
	}
	if got := call(t, b, "get", "b").want(t, 1); got.stdout != "" || got.stderr != "locker: nobody holds \"b\"\n" {
		t.Errorf("%q, %q", got.stdout, got.stderr)
	}
	if got := call(t, b, "get", "-o", "json", "b").want(t, 1); len(decode[[]row](t, got.stdout)) != 0 {
		t.Errorf("printed %q", got.stdout)
	}
	if got := decode[[]row](t, call(t, b, "get", "-o", "json", "several").want(t, 0).stdout); len(got) != 2 || got[1].Value != "second" || got[1].Limit != 2 {
		t.Errorf("%+v", got)
	}
}

func TestLs_ShowsWhoHoldsWhatAndHowManyWait(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	a := locktest.Lock(t, worker(t, b), "a", "10.1.1.1")
	shared := locktest.Lock(t, worker(t, b), "shared", "", locker.WithShared())
	waits(t, b, 2, "a", "10.1.1.2")
	locktest.PutKey(t, b.Etcd, "locker/stuck/key", strings.Repeat("long ", 20))
	stuck := locktest.Get(t, worker(t, b), "stuck")
	wantCells(t, call(t, b, "ls").want(t, 0).stdout,
		"NAME|STATE|VALUE|HOST:PID|PROGRAM|TOKEN|TTL|WAITERS",
		fmt.Sprintf("a|held|10.1.1.1|HERE|worker|%d|LEFT|1", a.Token()),
		fmt.Sprintf(`shared|held, shared|""|HERE|worker|%d|LEFT|0`, shared.Token()),
		fmt.Sprintf("stuck|held|%s…|–|–|%d|–|0", strings.Repeat("long ", 12), stuck.Token),
	)
	wantCells(t, call(t, b, "ls", "-o", "wide", "s").want(t, 0).stdout,
		"NAME|STATE|VALUE|HOST:PID|PROGRAM|TOKEN|TTL|WAITERS|LEASE|STARTED|VERSION|KEY",
		fmt.Sprintf(`shared|held, shared|""|HERE|worker|%d|LEFT|0|%s|THEN|%s|%s`, shared.Token(), lease(shared), locker.Version, shared.Key()),
		fmt.Sprintf("stuck|held|%s|–|–|%d|–|0|none|–|–|locker/stuck/key", strings.Repeat("long ", 20)[:99], stuck.Token),
	)
	rows := decode[[]row](t, call(t, b, "ls", "-o", "json").want(t, 0).stdout)
	if len(rows) != 3 || rows[0].Owner == nil || rows[0].TTL == nil || *rows[0].Waiters != 1 {
		t.Fatalf("%+v", rows)
	}
	if r := rows[0]; r.Name != "a" || r.Key != a.Key() || r.State != "held" || r.Kind != "exclusive" || r.Limit != 1 || r.Value != "10.1.1.1" ||
		r.Token != a.Token() || r.Lease != lease(a) || *r.Granted != 60 || r.Owner.PID != os.Getpid() || r.Owner.Program != "worker" {
		t.Errorf("%+v", r)
	}
	if r := rows[2]; r.Lease != "" || r.Owner != nil || r.TTL != nil || r.Granted != nil {
		t.Errorf("%+v", r)
	}
}

func TestLs_WithoutLocksIsEmptyAndNoError(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, f := range []string{"table", "json"} {
		got := call(t, b, "ls", "-o", f, "www.")
		if got.code != 0 || got.stderr != "locker: nobody holds a name that begins with \"www.\"\n" {
			t.Errorf("exit code %d, %q", got.code, got.stderr)
		}
		if f == "json" && len(decode[[]row](t, got.stdout)) != 0 || f == "table" && got.stdout != "" {
			t.Errorf("printed %q", got.stdout)
		}
	}
}

func TestQueue_ShowsEverybodyInOrder(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first := locktest.Lock(t, worker(t, b), "a", "one", locker.WithLimit(2))
	second := locktest.Lock(t, worker(t, b), "a", "two", locker.WithLimit(3))
	waits(t, b, 3, "a", "three")
	waits(t, b, 4, "a", "four", locker.WithShared())
	queue, err := worker(t, b).Queue(locktest.Within(t), "a")
	if err != nil || len(queue) != 4 {
		t.Fatal(queue, err)
	}
	of := func(i int) string { return fmt.Sprintf("%x", int64(queue[i].Lease)) }
	wantCells(t, call(t, b, "queue", "a").want(t, 0).stdout,
		"TOKEN|STATE|KIND|VALUE|HOST:PID|PROGRAM|STARTED|LEASE|TTL",
		fmt.Sprintf("%d|held|limit 2|one|HERE|worker|THEN|%s|LEFT", first.Token(), of(0)),
		fmt.Sprintf("%d|held|limit 3|two|HERE|worker|THEN|%s|LEFT", second.Token(), of(1)),
		fmt.Sprintf("%d|waiting|exclusive|three|HERE|worker|THEN|%s|LEFT", queue[2].Token, of(2)),
		fmt.Sprintf("%d|waiting|shared|four|HERE|worker|THEN|%s|LEFT", queue[3].Token, of(3)),
	)
	rows := decode[[]row](t, call(t, b, "queue", "-o", "json", "a").want(t, 0).stdout)
	var kinds []string
	for _, r := range rows {
		kinds = append(kinds, fmt.Sprint(r.State, " ", r.Kind, " ", r.Limit, " ", r.Waiters == nil))
	}
	if want := []string{"held limited 2 true", "held limited 3 true", "waiting exclusive 1 true", "waiting shared 0 true"}; !slices.Equal(kinds, want) {
		t.Errorf("%q, want %q", kinds, want)
	}
	if got := call(t, b, "queue", "-o", "wide", "a").want(t, 0); !strings.Contains(got.stdout, first.Key()) {
		t.Errorf("no key in\n%s", got.stdout)
	}
	if got := call(t, b, "queue", "nobody"); got.code != 0 || got.stdout != "" {
		t.Errorf("exit code %d, %q", got.code, got.stdout)
	}
}

func TestOutput_HasNothingThatATerminalWouldObey(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	const evil = "\x1b[31m\a\r\n\u009b2J\u202e\x7f\xff"
	const name = "c1\u009b31m" // not of Locker, which refuses it
	locktest.PutKey(t, b.Etcd, "locker/"+name+"/1", evil)
	locktest.PutKey(t, b.Etcd, "locker/a/\x1b[2J", evil)
	for _, args := range [][]string{{"get", "a"}, {"ls"}, {"queue", "a"}, {"doctor"}, {"get", "\x1b[2J"}, {"queue", name}, {"--\x1b[2J"}} {
		for _, f := range []string{"table", "wide", "json"} {
			got := call(t, b, append(args, "-o", f)...)
			for _, text := range []string{got.stdout, got.stderr} {
				if strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
					t.Errorf("%q -o %s prints %q", args, f, text)
				}
			}
		}
	}
	if got := call(t, b, "get", "a").want(t, 0); got.stdout != `"\x1b[31m\a\r\n\u009b2J\u202e\x7f\xff"`+"\n" {
		t.Errorf("printed %s", got.stdout)
	}
	r := decode[[]row](t, call(t, b, "get", "-o", "json", "a").want(t, 0).stdout)[0]
	if r.Value != strings.ToValidUTF8(evil, "\uFFFD") || r.Binary != "G1szMW0HDQrCmzJK4oCuf/8=" || r.Key != "locker/a/\x1b[2J" {
		t.Errorf("%+v", r)
	}
}

func TestTable_IsAligned(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := printTable(&b, []string{"NAME", "TOKEN", "VALUE"}, [][]string{{"a", "12", "x"}, {"längerer", "–", "y"}}); err != nil {
		t.Fatal(err)
	}
	const want = "NAME      TOKEN  VALUE\n" +
		"a         12     x\n" +
		"längerer  –      y\n"
	if b.String() != want {
		t.Errorf("printed\n%s", b.String())
	}
}

func TestUsage_OfWhatIsNotValidIsOneSentenceAndCode2(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, args := range []string{
		"get", "get a b", "get -o yaml a", "get " + strings.Repeat("x", 2000), "ls a b", "queue", "queue a b", "nonsense",
		"watch", "watch a b", "watch a --prefix b", "force-unlock a", "force-unlock --token 1", "force-unlock a --token x",
		"force-unlock a --token -1", "force-unlock a --token 1", "doctor a", "doctor --slow x", "dev a", "dev --listen x",
		"help nosuch", "help get nosuch", "help --nonsense",
		"dev --listen example.com:1", "dev --listen 127.0.0.1:0 --data /dev/null/x", "completion", "completion tcsh", "--nonsense", "get --ttl x a", "ls --ttl 1ns",
	} {
		if got := call(t, b, strings.Split(args, " ")...).want(t, 2); got.stdout != "" {
			t.Errorf("%s: printed %q", args, got.stdout)
		}
	}
}

func TestHelp_ExplainsACommandWhateverTheEnvironmentIs(t *testing.T) {
	t.Setenv("LOCKER_TTL", "nonsense")
	for args, want := range map[string]string{"help": "Available Commands", "help get": "locker get NAME", "help help": "locker help [COMMAND]"} {
		if got := callWith(t, nil, strings.Split(args, " ")...).want(t, 0); !strings.Contains(got.stdout, want) {
			t.Errorf("%s: no %q in\n%s", args, want, got.stdout)
		}
	}
}

func TestHelp_OfEachCommandHasAnExample(t *testing.T) {
	t.Parallel()
	for _, cmd := range (&program{}).command().Commands() {
		if !cmd.Hidden && cmd.Example == "" || cmd.Example != "" && !strings.HasPrefix(cmd.Example, "  ") {
			t.Errorf("%s: %q", cmd.Name(), cmd.Example)
		}
	}
}

func TestConnection_ThatFailsIsExplainedInTime(t *testing.T) {
	t.Parallel()
	const nobody = "127.0.0.1:1" // a port that no test is given
	for _, args := range []string{"get a", "ls", "queue a", "watch a", "force-unlock a --token 1 --yes", "get a --user me:secret", "doctor --user me:secret"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			got := callWith(t, strings.NewReader(""), append([]string{"--endpoints", nobody, "--dial-timeout", "2s"}, strings.Split(args, " ")...)...).want(t, 1)
			soon(t, began)
			if !strings.Contains(got.stderr, nobody) || !strings.Contains(got.stderr, "connection refused") {
				t.Errorf("%s", got.stderr)
			}
		})
	}
}

func TestOutput_ThatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, worker(t, b), "a", "one")
	for _, args := range []string{"get a", "ls", "queue -o json a", "watch a"} {
		var stderr strings.Builder
		code := executeUntil(locktest.Within(t), append([]string{"--endpoints", b.Server.Endpoints()[0]}, strings.Split(args, " ")...), nil, full{}, &stderr)
		if code != 1 || !strings.Contains(stderr.String(), "disk is full") {
			t.Errorf("%s: exit code %d, %s", args, code, &stderr)
		}
	}
}

// full is a writer that cannot write.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

func TestLeases_AreAskedAboutOnceAndNotAllAtOnce(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var entries []locker.Entry
	for range 2 * leasesAtOnce {
		resp, err := b.Etcd.Grant(locktest.Within(t), 60)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			entries = append(entries, locker.Entry{Holder: locker.Holder{Lease: resp.ID}})
		}
	}
	entries = append(entries, locker.Entry{}, locker.Entry{Holder: locker.Holder{Lease: 12345}}) // none, and one that is gone
	var mu sync.Mutex                                                                            // guards what follows
	asked, under, most := make(map[clientv3.LeaseID]int), 0, 0
	etcd := b.Server.ClientWith(t, func(_ context.Context, _ string, req any, call func() error) error {
		if ask, ok := req.(*pb.LeaseTimeToLiveRequest); ok {
			mu.Lock()
			asked[clientv3.LeaseID(ask.ID)]++
			under++
			most = max(most, under)
			mu.Unlock()
			defer func() { mu.Lock(); under--; mu.Unlock() }()
		}
		return call()
	})
	found := askLeases(locktest.Within(t), etcd, entries, locktest.Timeout)
	if len(asked) != 2*leasesAtOnce+1 || most > leasesAtOnce {
		t.Errorf("asked about %d leases, %d at a time", len(asked), most)
	}
	for id, n := range asked {
		if n != 1 {
			t.Errorf("asked %d times about %x", n, int64(id))
		}
	}
	if r := found.row(entries[0]); r.TTL == nil || *r.Granted != 60 {
		t.Errorf("%+v", r)
	}
	for _, e := range entries[len(entries)-2:] {
		if r := found.row(e); r.TTL != nil || r.ttl() != show.Unknown {
			t.Errorf("%+v", r)
		}
	}
}

func TestLeases_AreUnknownOnceEtcdDoesNotAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	var entries []locker.Entry
	for i := range 1000 {
		entries = append(entries, locker.Entry{Holder: locker.Holder{Lease: clientv3.LeaseID(i + 1)}})
	}
	etcd := b.Server.ClientWith(t, func(ctx context.Context, _ string, _ any, _ func() error) error {
		<-ctx.Done()
		return ctx.Err()
	})
	began := time.Now()
	found := askLeases(locktest.Within(t), etcd, entries, 100*time.Millisecond)
	soon(t, began)
	if r := found.row(entries[0]); r.ttl() != show.Unknown {
		t.Errorf("%+v", r)
	}
}

func TestLs_EndsIfEtcdStopsToAnswer(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := &program{connection: connection{dialTimeout: 10 * time.Millisecond}}
	proxy := b.Server.Proxy(t)
	c := locktest.NewClient(t, proxy.Client(t))
	locktest.List(t, c, "")
	proxy.Freeze()
	ctx, cancel := p.inTime(locktest.Within(t))
	defer cancel()
	if _, err := c.Queues(ctx, ""); err == nil || !strings.Contains(err.Error(), "--dial-timeout") {
		t.Error(err)
	}
}
