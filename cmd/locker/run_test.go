//go:build unix

package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

func TestRun_ExitCodes(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	locktest.Lock(t, b.Client(t), "taken", "by the test")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "plain"), 0o644, "exit 0")
	write(t, filepath.Join(dir, "no-shebang"), 0o755, "exit 9")
	write(t, filepath.Join(dir, "no-interpreter"), 0o755, "#!/no/such/interpreter\n")
	for _, test := range []struct {
		code int
		args []string
		says string // on stderr; nothing if it is empty
	}{
		{0, []string{"free", "--", "true"}, ""},
		{1, []string{"free", "--", "false"}, ""},
		{255, []string{"free", "--", "sh", "-c", "exit 255"}, ""},
		{7, []string{"free", "-c", "exit 7"}, ""},
		{9, []string{"free", "--", filepath.Join(dir, "no-shebang")}, ""},
		{128 + 9, []string{"free", "--", "sh", "-c", "kill -9 $$"}, ""},
		{128 + 15, []string{"free", "--", "sh", "-c", "kill $$"}, ""},
		{exitBusy, []string{"taken", "-n", "--", "true"}, `locker: taken is locked by the holder of token`},
		{exitBusy, []string{"taken", "-n", "--", "true"}, `("by the test")`},
		{exitBusy, []string{"taken", "-w", "0", "--", "true"}, "taken is locked by"},
		{exitBusy, []string{"taken", "-w", "50ms", "--", "true"}, "locker: taken is not "},
		{exitBusy, []string{"also free", "--also", "taken", "-n", "--", "true"}, "locker: taken is locked by"},
		{0, []string{"taken", "-n", "-E", "0", "--", "true"}, "taken is locked"},
		{255, []string{"taken", "-w", "50ms", "-E", "255", "--", "true"}, "taken is not "},
		{exitUsage, []string{"free", "-E", "256", "--", "true"}, "between 0 and 255"},
		{exitUsage, []string{"free", "-E", "-1", "--", "true"}, "between 0 and 255"},
		{exitUsage, []string{"free", "-E", "many", "--", "true"}, `invalid argument "many"`},
		{exitUsage, []string{"free"}, "give the name of a lock"},
		{exitUsage, []string{"free", "true"}, "give the name of a lock"},
		{exitUsage, []string{"--", "true"}, "give the name of a lock"},
		{exitUsage, []string{"free", "-c", "true", "--", "true"}, "not both"},
		{exitUsage, []string{"free", "-n", "-w", "1s", "--", "true"}, "not both"},
		{exitUsage, []string{"free", "-w", "-1s", "--", "true"}, "negative"},
		{exitUsage, []string{"free", "-n", "--keep", "--", "true"}, "leave out -n"},
		{exitUsage, []string{"free", "--grace", "0s", "--", "true"}, "more than 0"},
		{exitUsage, []string{"free", "--limit", "1001", "--", "true"}, "between 1 and 1000"},
		{exitUsage, []string{"free", "--limit", "2", "--shared", "--", "true"}, "not both"},
		{exitUsage, []string{"free", "--also", "free", "--", "true"}, "given twice"},
		{exitUsage, []string{"", "--", "true"}, "it is empty"},
		{exitNotExecutable, []string{"free", "--", dir}, "cannot be run: "},
		{exitNotExecutable, []string{"free", "--", filepath.Join(dir, "plain")}, "permission denied"},
		{exitNotFound, []string{"free", "--", "no-such-program"}, "locker: no-such-program cannot be run: executable file not found"},
		{exitNotFound, []string{"free", "--", "/no/such/program"}, "no such file"},
		{exitNotFound, []string{"free", "--", filepath.Join(dir, "no-interpreter")}, "no such file"},
		{exitUnable, []string{"free", "--endpoints", "127.0.0.1:1", "--dial-timeout", "100ms", "--", "true"}, "locker: no answer from etcd at 127.0.0.1:1"},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			t.Parallel()
			p := launch(t, command(b.Server.Endpoints(), append([]string{"run"}, test.args...)...))
			p.wantEnd(t, test.code)
			if got := p.stderr.String(); !strings.Contains(got, test.says) || test.says == "" && got != "" || strings.Count(got, "\n") > 1 {
				t.Errorf("it says %q, want %q", got, test.says)
			}
		})
	}
}

func write(t *testing.T, file string, mode os.FileMode, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func TestRun_EnvironmentIsThatOfTheInnermostLock(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	print := `echo "$LOCKER_NAME $LOCKER_KEY $LOCKER_TOKEN $LOCKER_LEASE $ETCD_LOCK_KEY $ETCD_LOCK_REV $OTHER"; read line`
	self, _ := os.Executable()
	cmd := command(b.Server.Endpoints(), "run", "outer", "--", self, "run", "inner", "--", "sh", "-c", print)
	cmd.Env = append(cmd.Env, "OTHER=as it was", "ETCD_LOCK_KEY=stale", "LOCKER_NAME=stale")
	p := launch(t, cmd)
	line := p.line(t)
	inner := locktest.Get(t, b.Client(t), "inner")
	key := fmt.Sprintf("locker/inner/%x", int64(inner.Lease))
	want := fmt.Sprintf("inner %s %d %x %[1]s %[2]d as it was", key, inner.Token, int64(inner.Lease))
	if line != want {
		t.Errorf("the environment is\n%s, want\n%s", line, want)
	}
	if got := b.Value(t, key); got != "" {
		t.Errorf("value %q", got)
	}
	if outer := locktest.Get(t, b.Client(t), "outer"); outer.Token >= inner.Token {
		t.Errorf("tokens %d and %d", outer.Token, inner.Token)
	}
	_ = p.stdin.Close()
	p.wantEnd(t, 1) // of read
}

// LOCKER_KEY, the file with the key of TLS, becomes the key of the lock. What the file is has
// to reach a locker in the command nevertheless: without it, it could not use the certificate.
func TestRun_ALockerInTheCommandHasTheFileOfTheTLSKey(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	cert, key := certificate(t)
	self, _ := os.Executable()
	cmd := command(b.Server.Endpoints(), "run", "outer", "--", self, "run", "middle", "--",
		self, "run", "inner", "--", "sh", "-c", `echo "$LOCKER_NAME $LOCKER_CERT $ETCDCTL_KEY"; echo "$LOCKER_KEY"`)
	cmd.Env = append(cmd.Env, "LOCKER_CERT="+cert, "LOCKER_KEY="+key)
	p := launch(t, cmd)
	p.wantLine(t, "inner "+cert+" "+key)
	if got := p.line(t); !strings.HasPrefix(got, "locker/inner/") {
		t.Errorf("LOCKER_KEY is %q", got)
	}
	p.wantEnd(t, 0)
}

// certificate returns the files of a certificate and of its key.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, cert, 0o600, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})))
	write(t, key, 0o600, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded})))
	return cert, key
}

func TestRun_InputAndArgumentsAreUntouched(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	args := []string{"", " a  b ", "$HOME", "*", "--", "-n", "--value", "x;y", "'", `"`, "two\nlines", "-c"}
	cmd := command(b.Server.Endpoints(), append([]string{"run", "a", "--value", "v", "--", "sh", "-c",
		`for a; do printf "<%s>" "$a"; done; echo; od -An -tx1 -v | tr -d " \n"; echo; cat <&3`, "name"}, args...)...)
	input := []byte{0, 1, 255, '\n', 26, 4, '\r'}
	cmd.Stdin = bytes.NewReader(input)
	file := filepath.Join(t.TempDir(), "third")
	write(t, file, 0o600, "a descriptor of its own\n")
	third, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = third.Close() }()
	cmd.ExtraFiles = []*os.File{third}
	p := launch(t, cmd)
	p.wantEnd(t, 0)
	var lines []string
	for line := range p.lines {
		lines = append(lines, line)
	}
	want := fmt.Sprintf("<%s>\n%x\na descriptor of its own", strings.Join(args, "><"), input)
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("the command got\n%s\nwant\n%s", got, want)
	}
	if got := p.stderr.String(); got != "" {
		t.Errorf("stderr %q", got)
	}
}

func TestRun_EndsTheWaitOnASignal(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			name := "wait-" + strconv.Itoa(int(s))
			taken := locktest.Lock(t, b.Client(t), name, "")
			p := runUnder(t, b.Server.Endpoints(), name, "--", "touch", filepath.Join(t.TempDir(), "never"))
			b.Queued(t, name, 2)
			p.signal(t, syscall.SIGWINCH) // nobody means that
			p.signal(t, s)
			p.wantEnd(t, exitSignal+int(s))
			b.Queued(t, name, 1)
			locktest.Unlock(t, taken)
		})
	}
}

func TestRun_PassesSignalsToTheGroup(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", `trap "echo parent; exit 4" TERM
sh -c 'trap "echo child; exit" TERM; echo ready; while :; do sleep 0.05; done' & child=$!
while :; do wait $child; done`)
	p.wantLine(t, "ready")
	p.signal(t, syscall.SIGTERM)
	got := []string{p.line(t), p.line(t)}
	slices.Sort(got)
	if want := []string{"child", "parent"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	p.wantEnd(t, 4)
}

func TestRun_PassesEverySignalOn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, passed := range passedOn {
		s := passed.(syscall.Signal)
		if s == syscall.SIGTSTP || s == syscall.SIGCONT {
			continue // see the tests of job control
		}
		t.Run(strconv.Itoa(int(s)), func(t *testing.T) {
			t.Parallel()
			p := runUnder(t, b.Server.Endpoints(), "s"+strconv.Itoa(int(s)), "-c",
				fmt.Sprintf(`trap "echo got; exit 33" %d; echo ready; while :; do sleep 0.05; done`, int(s)))
			p.wantLine(t, "ready")
			p.signal(t, s)
			p.wantLine(t, "got")
			p.wantEnd(t, 33)
		})
	}
}

func TestRun_KeepsIgnoringWhatItWasStartedToIgnore(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	self, _ := os.Executable()
	cmd := command(b.Server.Endpoints())
	inner := `echo ready; while read line; do echo "$line"; done`
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `trap "" HUP; exec "$@"`, "sh", self, "run", "a", "--", "sh", "-c", inner}
	p := launch(t, cmd)
	p.wantLine(t, "ready")
	p.signal(t, syscall.SIGHUP)
	fmt.Fprintln(p.stdin, "still here")
	p.wantLine(t, "still here")
	_ = p.stdin.Close()
	p.wantEnd(t, 0)
}

func TestRun_EndsWhatTheCommandLeavesBehindBeforeTheRelease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for name, left := range map[string]string{
		"asked":    `sh -c 'trap "exit" TERM; while :; do sleep 0.05; done' &`,
		"stubborn": `(trap "" TERM; exec sleep 1000) &`,
		"stopped":  `sleep 1000 & kill -STOP $!;`,
		"departed": `setsid sleep 1000 &`,
		"daemon":   `setsid sh -c 'trap "" TERM; sleep 1000 & sleep 1000' &`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := runUnder(t, b.Server.Endpoints(), name, "--grace", "500ms", "-c", left+" echo $$ $!; read line; exit 6")
			pids := p.pids(t)
			next := locktest.LockAsync(locktest.Within(t), b.Client(t), name, "")
			b.Queued(t, name, 2)
			_ = p.stdin.Close()
			goneFirst(t, pids, next)
			p.wantEnd(t, 6)
		})
	}
}

func TestRun_Kinds(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	hold := func(t *testing.T, args ...string) (end func()) {
		t.Helper()
		cmd := command(b.Server.Endpoints(), slices.Concat([]string{"run"}, args, []string{"--", "sh", "-c", "echo held; read line; exit 0"})...)
		p := launch(t, cmd)
		p.wantLine(t, "held")
		return func() {
			t.Helper()
			_ = p.stdin.Close()
			p.wantEnd(t, 0)
		}
	}
	busy := func(t *testing.T, args ...string) {
		t.Helper()
		launch(t, command(b.Server.Endpoints(), slices.Concat([]string{"run", "-n"}, args, []string{"--", "true"})...)).wantEnd(t, exitBusy)
	}
	t.Run("shared", func(t *testing.T) {
		t.Parallel()
		end := hold(t, "s", "--shared", "--value", "one")
		defer hold(t, "s", "-s", "--value", "two")()
		busy(t, "s")
		if holders, err := c.Holders(locktest.Within(t), "s"); err != nil || len(holders) != 2 || holders[0].Value != "one" || holders[1].Limit != 0 {
			t.Errorf("%+v, %v", holders, err)
		}
		end()
	})
	t.Run("limit", func(t *testing.T) {
		t.Parallel()
		end := hold(t, "l", "--limit", "2")
		defer hold(t, "l", "--limit", "2")()
		busy(t, "l", "--limit", "2")
		end()
		hold(t, "l", "--limit", "2")()
	})
	t.Run("also", func(t *testing.T) {
		t.Parallel()
		defer hold(t, "m1", "--also", "m2", "--also", "m3", "--value", "v")()
		for _, name := range []string{"m1", "m2", "m3"} {
			busy(t, name)
			if h := locktest.Get(t, c, name); h.Value != "v" {
				t.Errorf("%+v", h)
			}
		}
		busy(t, "m4", "--also", "m3")
	})
	t.Run("also limited", func(t *testing.T) {
		t.Parallel()
		defer hold(t, "n1", "--also", "n2", "--limit", "2")()
		defer hold(t, "n2", "--also", "n1", "--limit", "2")()
		busy(t, "n2", "--limit", "2")
	})
}

func TestRun_ReportsWhatHappens(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := launch(t, command(b.Server.Endpoints(), "run", "a", "--json", "--", "true"))
	p.wantEnd(t, 0)
	if got, want := p.events(), []string{"waiting", "locked", "started", "exited", "released"}; !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	if lines := strings.Count(p.stderr.String(), "\n"); lines != 5 {
		t.Errorf("%d lines", lines)
	}
	p = launch(t, command(b.Server.Endpoints(), "run", "a", "-v", "--", "true"))
	p.wantEnd(t, 0)
	if got := p.stderr.String(); !strings.Contains(got, "event=locked name=a key=locker/a/") {
		t.Errorf("it says %q", got)
	}
	taken := locktest.Lock(t, b.Client(t), "b", "")
	p = launch(t, command(b.Server.Endpoints(), "run", "b", "-n", "--json", "--", "true"))
	p.wantEnd(t, exitBusy)
	if got := p.stderr.String(); !strings.Contains(got, `"event":"failed","code":75,"error":"b is locked by the holder`) {
		t.Errorf("it says %q", got)
	}
	locktest.Unlock(t, taken)
}

func TestRun_SaysWhoseProcessItIs(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	cmd := command(b.Server.Endpoints(), "run", "a", "--grace", "20s", "--", "sh", "-c", "echo held; read line")
	p := launch(t, cmd)
	p.wantLine(t, "held")
	queue, err := b.Client(t).Queue(locktest.Within(t), "a")
	if err != nil || len(queue) != 1 {
		t.Fatal(queue, err)
	}
	if o := queue[0].Owner; o.Program != "locker run sh" || o.PID != p.Process.Pid {
		t.Errorf("owner %+v", o)
	}
	resp, err := b.Etcd.TimeToLive(locktest.Within(t), queue[0].Lease)
	if err != nil || resp.GrantedTTL != 41 {
		t.Errorf("TTL %+v, %v; want twice the grace and its reserve", resp, err)
	}
	_ = p.stdin.Close()
	p.wantEnd(t, 1)
}

func TestRun_KeepRunsTheCommandAgainAfterALoss(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "--keep", "-c", `trap "exit 5" TERM; trap "exit 0" USR1; echo $LOCKER_TOKEN; while :; do sleep 0.05; done`)
	tokens := []int64{0}
	for range 3 {
		token, err := strconv.ParseInt(p.line(t), 10, 64)
		if err != nil || token <= tokens[len(tokens)-1] {
			t.Fatalf("token %d, %v, after %v", token, err, tokens)
		}
		if tokens = append(tokens, token); len(tokens) < 4 {
			forceOpen(t, c, "a", token)
		}
	}
	p.signal(t, syscall.SIGUSR1)
	p.wantEnd(t, 0)
}

func TestRun_KeepEndsWithTheSignalThatAsksForTheEnd(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "--keep", "-c", `trap "echo term" TERM; trap "exit 0" USR1; echo $LOCKER_TOKEN; while :; do sleep 0.05; done`)
	token, _ := strconv.ParseInt(p.line(t), 10, 64)
	p.signal(t, syscall.SIGTERM)
	p.wantLine(t, "term")
	forceOpen(t, b.Client(t), "a", token)
	p.wantEnd(t, exitLost)
}

// forceOpen removes the entry of a holder.
func forceOpen(t *testing.T, c *locker.Client, name string, token int64) {
	t.Helper()
	if _, err := c.ForceUnlock(locktest.Within(t), name, token); err != nil {
		t.Fatal(err)
	}
}

func TestRun_WaitsOnAfterItsPlaceWasLost(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	taken := locktest.Lock(t, b.Client(t), "a", "")
	p := runUnder(t, b.Server.Endpoints(), "a", "--", "echo", "held")
	b.Queued(t, "a", 2)
	queue, err := b.Client(t).Queue(locktest.Within(t), "a")
	if err != nil || len(queue) != 2 {
		t.Fatal(queue, err)
	}
	b.Server.ExpireLease(t, queue[1].Lease)
	locktest.Eventually(t, "another entry", func() bool {
		again, err := b.Client(t).Queue(locktest.Within(t), "a")
		return err == nil && len(again) == 2 && again[1].Lease != queue[1].Lease
	})
	locktest.Unlock(t, taken)
	p.wantEnd(t, 0)
}
