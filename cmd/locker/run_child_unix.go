//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"github.com/jagregory/locker/v2"
)

// child is the command while it runs, behind its guard.
type child struct {
	*run
	lock     *locker.Lock
	adopting bool // what the guard leaves behind becomes a child of locker, which has no others
	guard    *exec.Cmd
	link     *link
	group    int              // process group; 0 until the command has started
	code     *int             // exit code, once it has exited
	failed   error            // why it could not be started
	deadline time.Time        // of the lock, as the guard knows it
	backstop <-chan time.Time // when the guard should have killed the command
	job
}

// execute runs the command under the lock, and returns its exit code when nothing of it is
// left.
func (r *run) execute(l *locker.Lock) (code int, err error) {
	c := &child{run: r, lock: l}
	if err := c.start(); err != nil {
		return 0, fmt.Errorf("the command cannot be guarded: %w", err)
	}
	c.watch()
	c.takeTerminal()
	_ = c.link.conn.Close()
	if c.guard.Wait() != nil { // it did not end by itself, when nothing was left
		c.killRest()
	}
	switch {
	case c.failed != nil:
		return 0, c.failed
	case c.code == nil:
		return 0, errors.New("the process that guarded the command was killed, and so was the command")
	}
	return *c.code, nil
}

// start starts the guard, which starts the command once it knows how long the lock is held.
func (c *child) start() error {
	own, others, err := sockets()
	if err != nil {
		return err
	}
	defer func() { _ = others.Close() }()
	if c.link, err = newLink(own); err != nil {
		return err
	}
	program, err := ownProgram()
	if err != nil {
		return err
	}
	c.guard = exec.Command(program, guardArguments(others, c.inForeground(), c.grace, c.path, c.argv)...)
	c.guard.Args[0] = "locker"
	c.guard.Stdin, c.guard.Stdout, c.guard.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.guard.Env = environmentUnder(c.lock)
	c.guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what stops locker, as ^Z does, does not stop the guard
	// Children that are there already are not of locker, but of a shell that has become it.
	if c.adopting = adopts && len(children()) == 0; c.adopting {
		adoptOrphans()
	}
	if err := c.guard.Start(); err != nil {
		return err
	}
	c.extend()
	return nil
}

// watch follows the command, the lock and the signals until the guard is gone, or does not
// answer.
func (c *child) watch() {
	reports, ended := receive[report](c.link), c.lock.Context().Done()
	tick := time.NewTicker(max(c.grace/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case r, ok := <-reports:
			if !ok {
				return
			}
			c.heed(r)
		case s := <-c.signals:
			c.pass(s.(syscall.Signal))
		case <-c.notStopped:
			c.goOn()
		case <-tick.C:
			c.extend()
		case <-ended:
			ended = nil
			c.endCommand()
		case <-c.backstop:
			c.killGroup()
			_ = c.guard.Process.Kill() // and then the rest
		}
	}
}

// heed deals with what the guard reports.
func (c *child) heed(r report) {
	switch {
	case r.Failed != nil:
		c.failed = &exitError{r.Failed.Code, errors.New(r.Failed.Text)}
	case r.Group != 0:
		c.group = r.Group
		c.log.Info("started", "pid", r.Group)
	case r.Stopped != 0:
		c.log.Info("stopped", "signal", r.Stopped.String())
		c.stop(r.Stopped)
	case r.Exited != nil:
		c.code = r.Exited
		c.log.Info("exited", "code", *r.Exited)
		c.takeTerminal()
	}
}

// pass passes a signal on to the command.
func (c *child) pass(s syscall.Signal) {
	if s == syscall.SIGCONT {
		c.log.Info("continued")
		c.goOn()
		return
	}
	c.told = c.told || slices.Contains(ending, s)
	c.log.Info("signal", "signal", s.String())
	_ = c.link.send(order{Signal: s})
}

// extend tells the guard how long the lock is held. The guard makes use of it only if locker
// is stopped meanwhile; else locker is the first to know of a loss. A locker that was
// stopped, or whose machine slept, learns of a loss here.
func (c *child) extend() {
	if c.lock.Err() != nil {
		return // its context has ended
	}
	if deadline := c.lock.Deadline(); !deadline.Equal(c.deadline) {
		c.deadline = deadline
		_ = c.link.send(order{Term: at(deadline) + c.reserve(), Kill: at(deadline) + c.grace})
	}
}

// endCommand has the command ended, because the lock is lost.
func (c *child) endCommand() {
	c.log.Warn("lost, ending the command", "error", c.lock.Err().Error())
	from := now()
	if deadline := at(c.lock.Deadline()); deadline < from {
		from = deadline
	}
	kill := max(from+c.grace, 1)
	_ = c.link.send(order{Term: max(from, 1), Kill: kill})
	c.backstop = time.After(kill - now() + c.reserve()/2)
}

// killRest kills what a guard that was killed has left behind, and waits until it is gone; or
// not much longer, if something there cannot be killed.
func (c *child) killRest() {
	for end := time.Now().Add(c.grace); time.Now().Before(end); time.Sleep(time.Millisecond) {
		left := c.killGroup()
		if c.adopting {
			for _, pid := range children() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			left = isParent() || left
		}
		if !left {
			return
		}
	}
}

// killGroup kills the command's group, and reports whether there was one.
func (c *child) killGroup() bool {
	return c.group != 0 && syscall.Kill(-c.group, syscall.SIGKILL) != syscall.ESRCH
}

// isParent reports whether this process has children. Those that have ended are waited for,
// and count no more.
func isParent() bool {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if pid <= 0 && err != syscall.EINTR {
			return err == nil
		}
	}
}

// at returns when a time is, by now. If the process is paused in between, that is too early
// and not too late.
func at(t time.Time) time.Duration {
	from := now()
	return from + time.Until(t)
}
