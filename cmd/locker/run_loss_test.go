//go:build unix

package main

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// waiting lets another client wait for a name that one holds.
func waiting(t *testing.T, b locktest.Bundle, name string) <-chan locktest.Outcome {
	t.Helper()
	next := locktest.LockAsync(locktest.Within(t), b.Client(t), name, "")
	b.Queued(t, name, 2)
	return next
}

func TestRun_NothingIsLeftWhenAnotherHolds_LinkCut(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	p := runUnder(t, proxy.Endpoints(), "a", "--grace", "1s", "-c", stubborn)
	pids := p.pids(t)
	next := waiting(t, b, "a")
	proxy.Cut()
	goneFirst(t, pids, next)
	p.wantEnd(t, exitLost)
	if !slices.Contains(p.events(), "lost") || !strings.Contains(p.stderr.String(), `"event":"failed","code":76,"error":"a: lock lost: expired`) {
		t.Errorf("it says %q", p.stderr)
	}
}

func TestRun_NothingIsLeftWhenAnotherHolds_LinkFrozen(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	p := runUnder(t, proxy.Endpoints(), "a", "-c", stubborn) // with the grace of half a second that is the default
	pids := p.pids(t)
	next := waiting(t, b, "a")
	proxy.Freeze()
	goneFirst(t, pids, next)
	p.wantEnd(t, exitLost)
}

func TestRun_NothingIsLeftWhenAnotherHolds_LockerKilled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", stubborn)
	pids := p.pids(t)
	next := waiting(t, b, "a")
	began := time.Now()
	p.signal(t, syscall.SIGKILL)
	t.Logf("the command ended %v after locker was killed", gone(t, pids).Sub(began).Round(time.Millisecond))
	soon(t, began)
	goneFirst(t, pids, next)
	p.wantEnd(t, 128+9)
}

func TestRun_NothingIsLeftWhenAnotherHolds_LockerStopped(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "--grace", "1s", "-c", stubborn)
	pids := p.pids(t)
	next := waiting(t, b, "a")
	p.signal(t, syscall.SIGSTOP)
	goneFirst(t, pids, next)
	p.signal(t, syscall.SIGCONT)
	p.wantEnd(t, exitLost)
}

// If the guard is stopped as well, nothing can end the command; but then it ends at once when
// they go on.
func TestRun_EndsTheCommandAtOnceWhenItGoesOn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", "echo $$ $PPID; "+stubborn)
	guard := p.pids(t)[1]
	pids := p.pids(t)
	next := waiting(t, b, "a")
	p.signal(t, syscall.SIGSTOP)
	_ = syscall.Kill(guard, syscall.SIGSTOP)
	if o := locktest.Receive(t, next); o.Err != nil {
		t.Fatal(o.Err)
	}
	began := time.Now()
	_ = syscall.Kill(guard, syscall.SIGCONT)
	p.signal(t, syscall.SIGCONT)
	t.Logf("the command ended %v after locker went on", gone(t, pids).Sub(began).Round(time.Millisecond))
	soon(t, began)
	p.wantEnd(t, exitLost)
}

func TestRun_NothingIsLeftWhenAnotherHolds_GuardStopped(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	p := runUnder(t, proxy.Endpoints(), "a", "--grace", "2s", "-c", "echo $PPID; "+stubborn)
	guard := p.pids(t)[0]
	pids := p.pids(t)
	next := waiting(t, b, "a")
	_ = syscall.Kill(guard, syscall.SIGSTOP)
	proxy.Cut()
	goneFirst(t, pids, next)
	p.wantEnd(t, exitLost)
}

func TestRun_KillsTheCommandIfTheGuardIsKilled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", "echo $PPID; "+stubborn)
	guard := p.pids(t)[0]
	pids := p.pids(t)
	next := waiting(t, b, "a")
	_ = syscall.Kill(guard, syscall.SIGKILL)
	goneFirst(t, pids, next)
	p.wantEnd(t, exitUnable)
}

// A shell that has replaced itself by locker leaves it children that are none of its business.
func TestRun_SparesTheJobsOfTheShellThatHasBecomeLocker(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	self, _ := os.Executable()
	cmd := command(b.Server.Endpoints())
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `sleep 1000 <&- >&- 2>&- & echo $!; exec "$@"`, "sh",
		self, "run", "a", "--json", "-c", "read line; kill -9 $PPID; sleep 1000"}
	p := launch(t, cmd)
	job := p.pids(t)[0]
	p.reported(t, "started") // so that locker knows the group
	_ = p.stdin.Close()
	p.wantEnd(t, exitUnable)
	if !alive(job) {
		t.Error("the job was killed")
	}
}

// That is all that is promised if both are killed: the command itself ends.
func TestRun_KilledTogetherWithItsGuard(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", "echo $$ $PPID; trap '' TERM; while :; do sleep 0.05; done")
	pids := p.pids(t)
	next := waiting(t, b, "a")
	p.signal(t, syscall.SIGSTOP)
	_ = syscall.Kill(pids[1], syscall.SIGKILL)
	p.signal(t, syscall.SIGKILL)
	goneFirst(t, pids, next)
	p.wantEnd(t, 128+9)
}

func TestRun_NothingIsLeftWhenAnotherHolds_EtcdDied(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", stubborn)
	pids := p.pids(t)
	next := waiting(t, b, "a")
	b.Server.Stop(t, 0)
	p.wantEnd(t, exitLost)
	if slices.ContainsFunc(pids, alive) {
		t.Error("locker ended before the command")
	}
	b.Server.Restart(t, 0)
	goneFirst(t, pids, next)
}

func TestRun_LearnsOfAForcedUnlock(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", `trap "echo cleaned up; exit 0" TERM; echo $LOCKER_TOKEN; while :; do sleep 0.05; done`)
	token, _ := strconv.ParseInt(p.line(t), 10, 64)
	began := time.Now()
	forceOpen(t, b.Client(t), "a", token)
	p.wantLine(t, "cleaned up")
	t.Logf("the command had TERM after %v, with a TTL of %v", time.Since(began).Round(time.Millisecond), locktest.Brief)
	p.wantEnd(t, exitLost)
}

// A command that does not end by TERM has all of the grace before it is killed.
func TestRun_KillsNoSoonerThanTheGraceAllows(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	const grace = 2 * time.Second
	p := runUnder(t, b.Server.Endpoints(), "a", "--grace", grace.String(), "-c", stubborn)
	pids := p.pids(t)
	token := locktest.Get(t, b.Client(t), "a").Token
	forceOpen(t, b.Client(t), "a", token)
	ended := gone(t, pids)
	if got := ended.Sub(p.timeOf(t, "lost, ending the command")); got < grace { // it says so before TERM
		t.Errorf("the command was killed %v after TERM at the latest", got)
	}
	p.wantEnd(t, exitLost)
}

// The command of a lock may be a locker that holds another one: that, its guard, its command
// and whatever this has started have ended before another holds the outer lock.
func TestRun_NothingIsLeftWhenAnotherHolds_LockerInTheCommand(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	self, _ := os.Executable()
	p := runUnder(t, proxy.Endpoints(), "outer", "--grace", "1s", "--", "sh", "-c", `echo $$; exec "$@"`, "sh",
		self, "--endpoints", strings.Join(b.Server.Endpoints(), ","), "--ttl", "1m", "run", "inner", "-c", "echo $PPID; "+stubborn)
	pids := slices.Concat(p.pids(t), p.pids(t), p.pids(t)) // locker, its guard, and the command
	next := waiting(t, b, "outer")
	proxy.Cut()
	goneFirst(t, pids, next)
	p.wantEnd(t, exitLost)
}

func TestRun_LearnsOfARevokedLease(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", stubborn)
	pids := p.pids(t)
	b.Server.ExpireLease(t, locktest.Get(t, b.Client(t), "a").Lease)
	p.wantEnd(t, exitLost)
	if slices.ContainsFunc(pids, alive) {
		t.Error("locker ended before the command")
	}
}

// The command gets TERM as soon as the hold ends, with the whole grace before it, and may
// clean up. That it says it has succeeded does not count.
func TestRun_ACommandThatCleansUpAfterALossHasLost(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	p := runUnder(t, proxy.Endpoints(), "a", "--grace", "2s", "-c", `trap "sleep 0.2; echo cleaned up; exit 0" TERM; echo $$; while :; do sleep 0.05; done`)
	pids := p.pids(t)
	next := waiting(t, b, "a")
	proxy.Cut()
	p.wantLine(t, "cleaned up")
	goneFirst(t, pids, next)
	p.wantEnd(t, exitLost)
}

// The command has ended under the lock; that its release is not confirmed harms nobody.
func TestRun_ACommandThatEndsBeforeTheLossHasNotLost(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	proxy := b.Server.Proxy(t)
	p := launch(t, command(proxy.Endpoints(), "--ttl", "1m", "--dial-timeout", "1s", "run", "a", "-c", "echo $$; read line; exit 3"))
	p.pids(t)
	proxy.Cut()
	_ = p.stdin.Close()
	p.wantEnd(t, 3)
	if got := p.stderr.String(); !strings.HasPrefix(got, "locker: the release of a is not confirmed, it may stay locked for 1m0s: ") {
		t.Errorf("it says %q", got)
	}
}

// Whatever comes first, the exit code is that of the command, and the lock was held when the
// command ended, or it is that of a loss.
func TestRun_CommandsThatEndAtTheMomentOfTheLoss(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	for _, after := range []time.Duration{-20, -10, -5, 0, 5, 10, 20} {
		t.Run((after * time.Millisecond).String(), func(t *testing.T) {
			t.Parallel()
			name := "at" + strconv.Itoa(int(after))
			p := runUnder(t, b.Server.Endpoints(), name, "--value", "v", "-c", "echo $$; read line; exit 3")
			pids := p.pids(t)
			client := b.Client(t)
			token := locktest.Get(t, client, name).Token
			ended := locktest.Async(func() error {
				time.Sleep(max(0, after*time.Millisecond)) // not to wait for anything: to be just then
				return p.stdin.Close()
			})
			time.Sleep(max(0, -after*time.Millisecond))
			if _, err := client.ForceUnlock(locktest.Within(t), name, token); err != nil && !errors.Is(err, locker.ErrNotFound) {
				t.Fatal(err)
			}
			_ = locktest.Receive(t, ended)
			code := p.end(t)
			if slices.ContainsFunc(pids, alive) || code != 3 && code != exitLost {
				t.Errorf("exit code %d", code)
			}
			if released := slices.Contains(p.events(), "released"); (code == 3) != released {
				t.Errorf("exit code %d, events %q", code, p.events())
			}
		})
	}
}

// A lock that is gone when the command has ended was lost, although nothing had noticed.
func TestRun_ALossThatTheReleaseFinds(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := launch(t, command(b.Server.Endpoints(), "--ttl", "1m", "run", "a", "-c", "echo $LOCKER_TOKEN; read line; exit 0"))
	token, _ := strconv.ParseInt(p.line(t), 10, 64)
	forceOpen(t, b.Client(t), "a", token)
	_ = p.stdin.Close()
	p.wantEnd(t, exitLost)
	if got := p.stderr.String(); !strings.HasPrefix(got, "locker: a: lock lost: deleted") {
		t.Errorf("it says %q", got)
	}
}

// If somebody stops only the command, they mean to continue it.
func TestRun_KeepsTheLockWhileOnlyTheCommandIsStopped(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "-c", "echo $$; read line; echo went on")
	pid := p.pids(t)[0]
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	p.reported(t, "stopped")
	_ = p.stdin.Close()
	if !alive(pid) || locktest.Get(t, b.Client(t), "a").Token == 0 {
		t.Error("it is gone")
	}
	p.signal(t, syscall.SIGCONT) // which locker passes on
	p.wantLine(t, "went on")
	p.wantEnd(t, 0)
}

// With --grace a hold lasts for half of its TTL without a renewal.
func TestRun_HoldsForLongerThanTheTTL(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	p := runUnder(t, b.Server.Endpoints(), "a", "--grace", "5s", "-c", "sleep 12; echo done")
	p.wantLine(t, "done")
	p.wantEnd(t, 0)
}
