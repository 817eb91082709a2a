//go:build unix

package main

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// guard is the process between locker and the command. It is the parent of the command, and
// ends it when locker says so, when locker is gone, and, as locker may have been stopped,
// when the time has come that locker gave it last.
type guard struct {
	link    *link
	group   int           // process group of the command, and ID of its leader
	grace   time.Duration // between TERM and KILL
	changes <-chan fate   // of processes; closed when no child is left
	exited  bool          // the command
	killing bool          // whatever appears is killed

	term, kill time.Duration // when to send these, by now; 0 for never, or no more
	alarm      *time.Timer   // the next time to look at them
}

// fate is what has become of a child.
type fate struct {
	pid    int
	status syscall.WaitStatus
}

// guard is the command line of the guard: the file descriptor of the link, whether the
// command gets the terminal, the grace, the path of the program, and the arguments.
func (p *program) guard() *cobra.Command {
	return &cobra.Command{
		Use:                "guard",
		Short:              "The process that run puts between itself and the command",
		Hidden:             true,
		DisableFlagParsing: true,
		PersistentPreRun:   func(*cobra.Command, []string) {},
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) < 5 {
				return usageError("this is for locker run alone")
			}
			link, err := inherited(args[0])
			if err != nil {
				return usageError("this is for locker run alone: %v", err)
			}
			grace, err := time.ParseDuration(args[2])
			if err != nil {
				return usageError("this is for locker run alone: %v", err)
			}
			g := &guard{link: link, grace: grace}
			return g.run(args[1] == inForeground, args[3], args[4:])
		},
	}
}

// Whether the command is to have the terminal.
const (
	inForeground = "foreground"
	inBackground = "background"
)

// run starts the command and returns when nothing of it is left.
func (g *guard) run(foreground bool, path string, argv []string) error {
	// A thread that ends would take the command with it, see attributes.
	runtime.LockOSThread()
	// They are meant for the command, which gets them from locker, and begins without handlers
	// and with SIGTTOU as it is by default.
	signal.Notify(make(chan os.Signal, 1), append(passedOn, syscall.SIGTTOU)...)
	ignoreAsBefore()
	adoptOrphans()
	orders := receive[order](g.link)
	first, ok := <-orders
	if !ok || now() >= first.Term { // locker is gone, or the lock is lost already
		return nil
	}
	g.alarm = time.NewTimer(0)
	g.plan(first)
	pid, err := startCommand(path, argv, foreground)
	if err != nil {
		var code *exitError
		errors.As(cannotRun(argv[0], err), &code)
		g.tell(report{Failed: &failure{code.code, code.Error()}})
		return nil
	}
	g.group = pid
	g.changes = reap()
	g.tell(report{Group: pid})
	g.watch(orders)
	return nil
}

// startCommand starts the command. As execvp does, it has the shell run what is no program.
func startCommand(path string, argv []string, foreground bool) (pid int, err error) {
	process := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attributes(foreground)}
	pid, err = syscall.ForkExec(path, argv, process)
	if errors.Is(err, syscall.ENOEXEC) {
		pid, err = syscall.ForkExec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), process)
	}
	return pid, err
}

// reap waits for children, until there are none.
func reap() <-chan fate {
	changes := make(chan fate)
	go func() {
		defer close(changes)
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, syscall.WUNTRACED, nil)
			if err == nil {
				changes <- fate{pid, status}
			} else if err != syscall.EINTR {
				return
			}
		}
	}()
	return changes
}

// watch does what the time and locker ask for, until nothing of the command is left.
func (g *guard) watch(orders <-chan order) {
	for g.changes != nil || g.isLeft() {
		select {
		case o, ok := <-orders:
			if !ok { // locker is gone
				orders = nil
				g.end()
				continue
			}
			g.obey(o)
		case c, ok := <-g.changes:
			if !ok {
				g.changes = nil
				continue
			}
			g.notice(c)
		case <-g.alarm.C:
			g.look()
		}
	}
}

// obey does what locker says.
func (g *guard) obey(o order) {
	if o.Signal != 0 {
		_ = syscall.Kill(-g.group, o.Signal)
		return
	}
	g.plan(o)
}

// plan sets when the command is to end. TERM is not sent again, and once the command has
// exited, the rest of it gets no more time.
func (g *guard) plan(o order) {
	if g.term != 0 || g.group == 0 {
		g.term = o.Term
	}
	if !g.exited || o.Kill < g.kill {
		g.kill = o.Kill
	}
	g.look()
}

// look ends the command if it is time, and sets the alarm. The clock goes on while the
// machine sleeps, which the alarm may not notice, so it is never set far ahead.
func (g *guard) look() {
	if g.group != 0 && g.term != 0 && now() >= g.term {
		g.term = 0
		g.terminate()
	}
	if g.group != 0 && (g.killing || g.kill != 0 && now() >= g.kill) {
		g.end()
	}
	next := time.Second
	for _, at := range []time.Duration{g.term, g.kill} {
		if at != 0 {
			next = min(next, max(at-now(), time.Millisecond))
		}
	}
	if g.killing || g.changes == nil {
		next = min(next, 10*time.Millisecond) // something may have appeared, or gone, that tells nobody
	}
	g.alarm.Reset(next)
}

// terminate asks what there is of the command to end. What is stopped has to go on for that.
func (g *guard) terminate() {
	g.signal(syscall.SIGTERM)
	g.signal(syscall.SIGCONT)
}

// end kills what there is of the command, and from now on whatever appears.
func (g *guard) end() {
	g.killing = true
	g.signal(syscall.SIGKILL)
	g.alarm.Reset(10 * time.Millisecond)
}

// signal sends a signal to all that belongs to the command: its group, and what has left
// that, if it can be found.
func (g *guard) signal(s syscall.Signal) {
	_ = syscall.Kill(-g.group, s)
	for _, pid := range children() {
		if group, err := unix.Getpgid(pid); err == nil && group != g.group {
			_ = syscall.Kill(pid, s)
		}
	}
}

// notice deals with what has become of a child. When the command has exited, whatever it has
// left behind has to end as well.
func (g *guard) notice(c fate) {
	isCommand := c.pid == g.group && !g.exited
	switch {
	case isCommand && c.status.Stopped():
		g.tell(report{Stopped: c.status.StopSignal()})
	case isCommand:
		g.exited = true
		code := c.status.ExitStatus()
		if c.status.Signaled() {
			code = exitSignal + int(c.status.Signal())
		}
		g.tell(report{Exited: &code})
		g.term = 0
		if at := now() + g.grace; g.kill == 0 || at < g.kill {
			g.kill = at
		}
		g.terminate()
		g.look()
	case g.killing:
		g.end()
	}
}

// isLeft reports whether the group still exists although there is no child: where orphans
// are not adopted.
func (g *guard) isLeft() bool {
	if adopts {
		return false
	}
	g.look()
	return syscall.Kill(-g.group, 0) == nil
}

// tell reports to locker. If locker is gone, the guard learns it when it reads.
func (g *guard) tell(r report) { _ = g.link.send(r) }

// guardArguments returns the arguments of a guard.
func guardArguments(socket *os.File, foreground bool, grace time.Duration, path string, argv []string) []string {
	where := inBackground
	if foreground {
		where = inForeground
	}
	return append([]string{"guard", strconv.Itoa(int(socket.Fd())), where, grace.String(), path}, argv...)
}

// now returns the time on a clock that all processes share, that nobody sets, and that goes
// on while the machine sleeps.
func now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		panic(err) // there is no such system
	}
	return time.Duration(t.Nano())
}
