package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jagregory/locker/v2/internal/locktest"
)

// screen is a terminal with a shell in it that has job control.
type screen struct {
	master *os.File
	shown  *tape
	seen   int // how much of what was shown has been looked at
}

// newTerminal opens a terminal and starts a shell in it, in which SELF is
// locker, with the etcd of b.
func newTerminal(t *testing.T, b locktest.Bundle) *screen {
	t.Helper()
	master, slave := pseudoTerminal(t)
	shell := exec.Command("sh", "-i")
	self, _ := os.Executable()
	shell.Env = append(os.Environ(), "PS1=$ ", "ENV=", "TERM=xterm", "SELF="+self,
		asLocker+"=1", "LOCKER_ENDPOINTS="+strings.Join(b.Server.Endpoints(), ","), "LOCKER_DIAL_TIMEOUT=20s")
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	_ = slave.Close()
	s := &screen{master: master, shown: new(tape)}
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(s.shown, master) }()
	t.Cleanup(func() {
		_ = shell.Process.Signal(syscall.SIGHUP) // which ends what runs in it, too
		_ = shell.Process.Kill()
		_ = shell.Wait()
		_ = master.Close()
		<-read
		if t.Failed() {
			t.Logf("the terminal shows\n%s", s.shown)
		}
	})
	return s
}

// pseudoTerminal opens a terminal, 100 characters wide: the end of the person, and that of the
// program. The caller closes both. If LOCKER_TOOLS is "required", there has to be one.
func pseudoTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) && os.Getenv("LOCKER_TOOLS") != "required" {
		t.Skip("no terminals here")
	}
	var number int
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100})
	}
	if err == nil {
		number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "/dev/ptmx"), slave
}

// enter types a line.
func (s *screen) enter(t *testing.T, format string, args ...any) {
	t.Helper()
	s.press(t, fmt.Sprintf(format, args...)+"\r")
}

// press types.
func (s *screen) press(t *testing.T, keys string) {
	t.Helper()
	if _, err := io.WriteString(s.master, keys); err != nil {
		t.Fatal(err)
	}
}

// shows waits until a text appears after those that were seen before, and returns what
// appeared before it.
func (s *screen) shows(t *testing.T, text string) (before string) {
	t.Helper()
	locktest.Eventually(t, fmt.Sprintf("the terminal shows %q", text), func() bool {
		rest := s.shown.String()[s.seen:]
		at := strings.Index(rest, text)
		if at >= 0 {
			before = rest[:at]
			s.seen += at + len(text)
		}
		return at >= 0
	})
	return before
}

// echo is a command that prints its process ID and answers each line.
const echo = `echo pid=$$; while read x; do echo "<$x>"; done`

// pid waits for the process ID of the command.
func (s *screen) pid(t *testing.T) (pid int) {
	t.Helper()
	printed := regexp.MustCompile(`pid=(\d+)\r`)
	locktest.Eventually(t, "the command runs", func() bool {
		found := printed.FindStringSubmatch(s.shown.String())
		if found != nil {
			pid, _ = strconv.Atoi(found[1])
		}
		return found != nil
	})
	return pid
}

func TestRun_Terminal_TheCommandHasItAndStopsAndGoesOn(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	s := newTerminal(t, b)
	s.enter(t, `"$SELF" --ttl 1m run a -v -c '%s'`, echo)
	s.pid(t)
	s.enter(t, "one")
	s.shows(t, "<one>")
	for _, again := range []string{"two", "three"} {
		s.press(t, "\x1a") // ^Z
		s.shows(t, "Stopped")
		s.enter(t, "echo shell $((1+1))")
		s.shows(t, "shell 2")
		s.enter(t, "fg")
		s.shows(t, "event=continued")
		s.enter(t, "%s", again)
		s.shows(t, "<"+again+">")
	}
	s.press(t, "\x03") // ^C
	s.shows(t, "event=released")
	s.enter(t, "echo code $?")
	s.shows(t, "code 130")
	if entries := b.Entries(t); len(entries) > 0 {
		t.Errorf("left in etcd: %q", entries)
	}
}

func TestRun_Terminal_StartedInTheBackground(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	s := newTerminal(t, b)
	s.enter(t, `"$SELF" --ttl 1m run a -v -c 'read x; echo "<$x>"' &`)
	s.shows(t, "event=stopped")
	s.enter(t, "echo shell $((1+1))")
	s.shows(t, "shell 2")
	s.enter(t, "fg")
	s.shows(t, "event=continued")
	s.enter(t, "one")
	s.shows(t, "<one>")
	s.shows(t, "event=released")
	s.enter(t, "echo code $?")
	s.shows(t, "code 0")
}

func TestRun_Terminal_SentToTheBackground(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	s := newTerminal(t, b)
	s.enter(t, `"$SELF" --ttl 1m run a -v -c 'echo pid=$$; while :; do sleep 0.05; done'`)
	s.pid(t)
	s.press(t, "\x1a")
	s.shows(t, "Stopped")
	s.enter(t, "bg")
	s.shows(t, "event=continued")
	s.enter(t, `kill %%1; wait %%1; echo code $?`)
	s.shows(t, "code 143")
}

// A job that is stopped for longer than its TTL has lost its lock. It is not continued.
func TestRun_Terminal_StoppedForTooLong(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	s := newTerminal(t, b)
	s.enter(t, `"$SELF" --ttl %v run a -c 'trap "" TERM; %s'`, locktest.Brief, echo)
	pid := s.pid(t)
	s.press(t, "\x1a")
	s.shows(t, "Stopped")
	goneFirst(t, []int{pid}, locktest.LockAsync(locktest.Within(t), b.Client(t), "a", ""))
	s.enter(t, "fg; echo code $?")
	s.shows(t, "locker: a: lock lost: expired")
	s.shows(t, "code 76")
}

// If there is no shell that could continue it, nothing is stopped by ^Z.
func TestRun_Terminal_WithoutAShell(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	master, slave := pseudoTerminal(t)
	s := &screen{master: master, shown: new(tape)}
	cmd := command(b.Server.Endpoints(), "--ttl", "1m", "run", "a", "--json", "--", "sh", "-c", `echo ready; while read x; do echo "<$x>"; done; exit 3`)
	cmd.Stdin = slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p := launch(t, cmd)
	_ = slave.Close()
	t.Cleanup(func() { _ = master.Close() })
	p.wantLine(t, "ready")
	s.press(t, "\x1a")
	p.reported(t, "stopped")
	s.enter(t, "one")
	p.wantLine(t, "<one>")
	s.press(t, "\x04") // ^D
	p.wantEnd(t, 3)
}

func TestRun_Terminal_SurvivesLockerKilled(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	s := newTerminal(t, b)
	s.enter(t, `"$SELF" --ttl 1m run a -c '%s'`, echo)
	pid := s.pid(t)
	queue, err := b.Client(t).Queue(locktest.Within(t), "a")
	if err != nil || len(queue) != 1 {
		t.Fatal(queue, err)
	}
	_ = syscall.Kill(queue[0].Owner.PID, syscall.SIGKILL)
	s.shows(t, "Killed")
	gone(t, []int{pid}) // so that it does not read what is typed
	s.enter(t, "echo shell $((1+1))")
	s.shows(t, "shell 2")
}

func TestRun_Terminal_OneLineWhileItWaits(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	taken := locktest.Lock(t, b.Client(t), "a", "by the test")
	ahead := locktest.LockAsync(locktest.Within(t), b.Client(t), "a", "")
	b.Queued(t, "a", 2)
	s := newTerminal(t, b)
	host, _ := os.Hostname()
	s.enter(t, `"$SELF" run a -- echo held`)
	s.shows(t, fmt.Sprintf("\rlocker: waiting for a: held by \"by the test\" (%s:%d), 2 ahead, ", host, os.Getpid()))
	s.shows(t, "s\x1b[K")
	locktest.Unlock(t, taken)
	next := locktest.LockOf(t, ahead)
	s.shows(t, "held by \"\" (")
	s.shows(t, "1 ahead, ")
	began := time.Now()
	locktest.Unlock(t, next)
	s.shows(t, "\r\x1b[Kheld\r\n")
	soon(t, began)
}

func TestRun_Terminal_TheLineFitsIntoTheWidth(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	name := strings.Repeat("n", 200)
	locktest.Lock(t, b.Client(t), name, "")
	s := newTerminal(t, b)
	s.enter(t, `"$SELF" run %s -- echo held`, name)
	s.shows(t, "\rlocker: waiting")
	line := "locker: waiting" + s.shows(t, "\x1b[K")
	if n := len([]rune(line)); n != 99 || !strings.HasSuffix(line, "n…") {
		t.Errorf("%d characters: %q", n, line)
	}
	s.press(t, "\x03")
	s.shows(t, "$ ")
	s.enter(t, "echo code $?")
	s.shows(t, "code 130")
}
