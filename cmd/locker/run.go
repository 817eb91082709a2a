package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/backoff"
)

// Exit codes of run, besides those of the command.
const (
	exitBusy          = 75  // EX_TEMPFAIL
	exitLost          = 76  // the lock was lost, and the command ended
	exitUnable        = 125 // locker itself failed; this and the following as timeout(1) has them
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // and the number of the signal
)

// run runs a command while it holds a lock.
type run struct {
	*program
	name    string
	argv    []string // the command
	path    string   // of the program that the command names
	text    string   // of --command
	value   string
	also    []string
	shared  bool
	limit   int
	try     bool
	wait    time.Duration
	busy    int // exit code
	keep    bool
	grace   time.Duration
	verbose bool
	json    bool

	log     *slog.Logger
	client  *locker.Client
	close   func() // closes the client
	signals chan os.Signal
	told    bool // a signal that asks for the end came while the command ran
}

func (p *program) run() *cobra.Command {
	r := &run{program: p}
	cmd := &cobra.Command{
		Use:                   "run NAME [flags] -- COMMAND [ARGUMENT]...",
		DisableFlagsInUseLine: true,
		Short:                 "Run a command while holding a lock",
		Long:                  runHelp,
		Example:               runExample,
		ValidArgsFunction:     p.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.check(cmd, args); err != nil {
				return err
			}
			return r.closing(r.main(context.WithoutCancel(cmd.Context())))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&r.value, "value", "", "value of the lock, which others see")
	flags.StringVarP(&r.text, "command", "c", "", "`text` to run with sh -c, instead of a command")
	flags.BoolVarP(&r.try, "nonblock", "n", false, "do not wait if the lock is taken")
	flags.DurationVarP(&r.wait, "wait", "w", 0, "wait no longer than this (default: forever)")
	flags.IntVarP(&r.busy, "conflict-exit-code", "E", exitBusy, "exit `code` if the lock was not free, or not in time")
	flags.BoolVar(&r.keep, "keep", false, "after a loss wait for the lock again, and run the command again")
	flags.DurationVar(&r.grace, "grace", 0, "time between TERM and KILL after a loss (default: a tenth of the TTL)")
	flags.BoolVarP(&r.shared, "shared", "s", false, "share the lock with others that are shared")
	flags.IntVar(&r.limit, "limit", 0, "let up to `n` hold the lock at one time, this one included")
	flags.StringArrayVar(&r.also, "also", nil, "another `name` to lock together with the first; may be repeated")
	flags.BoolVarP(&r.verbose, "verbose", "v", false, "report on stderr what happens")
	flags.BoolVar(&r.json, "json", false, "report it as lines of JSON")
	return cmd
}

const runHelp = `Run waits until it holds the lock NAME, runs the command, and releases the lock.

The command gets stdin, stdout, stderr and its arguments as they are, and in its environment
LOCKER_NAME, LOCKER_KEY (the key in etcd), LOCKER_TOKEN (the fencing token), LOCKER_LEASE (hex),
and for programs made for etcdctl lock ETCD_LOCK_KEY and ETCD_LOCK_REV (the token as well). If
LOCKER_KEY was the file of a TLS key, ETCDCTL_KEY has that, so that a locker in there connects.

If the lock is lost, the command gets TERM at once and KILL when the grace has passed, before the
lease can run out: nothing of it is left when another can hold the lock. The safety margin of the
lease is the grace and a reserve, a quarter of it and at most 500ms, in which KILL takes effect;
--grace asks for a TTL of at least twice the margin. If TERM is late, because locker is stopped
or the machine is overloaded, KILL is not. After force-unlock, or if the lease was revoked, another
may hold the lock before the command has ended.

The command runs in a process group of its own. If it ends and leaves processes behind, they get
TERM, and KILL after the grace, before the lock is released: what is to outlive the lock has to be
started by somebody else. Signals are passed on to the group; while there is no command yet, they
end the wait. Not passed on are KILL, STOP, TTIN, TTOU, and those that the kernel sends a program
about itself, such as CHLD, PIPE, URG, XCPU, XFSZ, VTALRM, PROF, and faults. If stdin is a
terminal, the command has it, and a pager in the same pipeline has it only after that. A command
that is stopped (^Z) stops locker with it, so that the lock is lost after the TTL.

--shared and --limit are meant for all names. A lock of several names is taken and lost as one.

Exit codes: that of the command, or 128 and the number of the signal that ended it; 75 if the lock
is taken (-n) or was not free in time (-w), -E sets another; 76 if the lock was lost; 125 if locker
failed, 126 if the command cannot be run, 127 if there is none; 128 and the number of a signal that
ended the wait; 2 for a bad command line.

On Linux nothing outlives a kill -9 of locker or of the process that guards the command (locker
guard), and processes that have left the group are ended as well; but if somebody kills both with
-9 at one time, only the command itself ends. A command that changes its user, as sudo does, cannot
be ended by a locker without that right. On other Unixes processes that have left the group are not
found. On Windows only the process of the command is ended, without a TERM before, signals are not
passed on, and the command outlives a locker that is killed.`

const runExample = `  locker run backup -- pg_dump -f /backup/db.sql db
  locker run -n report --value "$HOSTNAME" -- ./report.sh || [ $? = 75 ]
  locker run deploy -w 5m --grace 20s -c 'make && make install'
  locker run scheduler --keep -v -- ./scheduler      # one of several machines
  locker run gpu --limit 4 -- ./train.sh             # at most four at a time`

// check takes the arguments, and checks them and the flags.
func (r *run) check(cmd *cobra.Command, args []string) error {
	flags := cmd.Flags()
	names := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		names, r.argv = args[:dash], args[dash:]
	}
	given := flags.Changed("command")
	if given && len(r.argv) == 0 {
		r.argv = []string{"sh", "-c", r.text}
	} else if given {
		return usageError("give a command either with -c or after \"--\", not both")
	}
	switch {
	case len(names) != 1 || len(r.argv) == 0:
		return usageError("give the name of a lock, \"--\", and a command; see %q", cmd.CommandPath()+" --help")
	case r.busy < 0 || r.busy > 255:
		return usageError("the exit code %d of -E is not between 0 and 255", r.busy)
	case r.wait < 0:
		return usageError("the time %v of -w is negative", r.wait)
	case r.try && flags.Changed("wait"):
		return usageError("give -n or -w, not both")
	case r.keep && (r.try || flags.Changed("wait") && r.wait == 0):
		return usageError("--keep waits after a loss: leave out -n")
	case flags.Changed("grace") && r.grace <= 0:
		return usageError("the time %v of --grace is not more than 0", r.grace)
	case flags.Changed("limit") && (r.limit < 1 || r.limit > 1000):
		return usageError("the number %d of --limit is not between 1 and 1000", r.limit)
	case r.shared && r.limit != 0:
		return usageError("give --shared or --limit, not both")
	}
	r.name = names[0]
	r.try = r.try || flags.Changed("wait") && r.wait == 0
	if ttl := &r.connection.ttl; r.grace == 0 {
		r.grace = *ttl / 10
	} else {
		*ttl = max(*ttl, 2*r.margin())
	}
	r.log = slog.New(r.reports())
	return nil
}

// main runs the command. Its error has an exit code, or is that of a locker that failed.
func (r *run) main(ctx context.Context) (err error) {
	if r.path, err = find(r.argv[0]); err != nil {
		return err
	}
	r.listen()
	if err := r.obeying(ctx, r.connect); err != nil {
		return err
	}
	defer r.disconnect(ctx)
	for pause := (backoff.Pause{}); ; {
		began := time.Now()
		err := r.once(ctx)
		if !r.keep || !errors.Is(err, locker.ErrLost) || r.told {
			return err
		}
		if time.Since(began) > r.connection.ttl {
			pause = backoff.Pause{}
		}
		if err := r.obeying(ctx, pause.Wait); err != nil {
			return err
		}
	}
}

// closing gives an error the exit code that it has yet to get. With --json it becomes an
// event.
func (r *run) closing(err error) error {
	if err == nil {
		return nil
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{exitUnable, errors.New(strings.TrimPrefix(err.Error(), "locker: "))}
	}
	if r.json && exit.err != nil {
		r.log.Error("failed", "code", exit.code, "error", exit.Error())
		return &exitError{code: exit.code}
	}
	return exit
}

// connect opens the client.
func (r *run) connect(ctx context.Context) (err error) {
	r.client, _, r.close, err = r.connection.open(ctx, locker.WithSafetyMargin(r.margin()), locker.WithLogger(r.log), locker.WithProgram(r.title()))
	return err
}

// margin is the safety margin of the lease: how long before the lease can run out the command
// gets TERM.
func (r *run) margin() time.Duration { return r.grace + r.reserve() }

// reserve is how long before the lease can run out the command is killed: that takes a
// moment, too.
func (r *run) reserve() time.Duration { return min(r.grace/4, 500*time.Millisecond) }

// title is what others see of the program: locker, whose process it is, and the command.
func (r *run) title() string {
	command := strings.ToValidUTF8(filepath.Base(r.argv[0]), "?")
	return "locker run " + strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return '?'
		}
		return c
	}, command)
}

// disconnect releases everything. If etcd does not confirm that in time, the lease runs out.
func (r *run) disconnect(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closeWait)
	defer cancel()
	_ = r.obeying(ctx, func(ctx context.Context) error {
		closed := make(chan struct{})
		go func() { defer close(closed); r.close() }()
		select {
		case <-closed:
		case <-ctx.Done():
		}
		return nil
	})
}

// closeWait is how long locker waits for the end of its lease, when it has released the lock
// or has lost it.
const closeWait = 2 * time.Second

// once waits for the lock, runs the command, and releases the lock.
func (r *run) once(ctx context.Context) error {
	var l *locker.Lock
	err := r.obeying(ctx, func(ctx context.Context) (err error) {
		l, err = r.lock(ctx)
		return err
	})
	if err != nil {
		return err
	}
	r.log.Info("locked", "name", r.name, "key", l.Key(), "token", l.Token())
	code, err := r.execute(l)
	if lost := l.Err(); lost != nil {
		return r.lost(lost)
	}
	if lost := r.unlock(ctx, l); lost != nil {
		return r.lost(lost)
	}
	if err == nil && code != 0 {
		err = &exitError{code: code}
	}
	return err
}

// lost returns the error of a lock that was lost.
func (r *run) lost(err error) error {
	var lost *locker.LostError
	if !errors.As(err, &lost) {
		return err
	}
	r.log.Warn("lost", "name", r.name, "token", lost.Token, "reason", lost.Reason.String())
	return &exitError{exitLost, fmt.Errorf("%s: %w", printable(r.name), lost)}
}

// unlock releases the lock. It returns an error only if the lock was lost before: the
// command has ended under it, so if etcd does not confirm the release, nobody is harmed.
func (r *run) unlock(ctx context.Context, l *locker.Lock) error {
	ctx, cancel := context.WithTimeout(ctx, r.connection.dialTimeout)
	defer cancel()
	err := r.obeying(ctx, l.Unlock)
	switch {
	case errors.Is(err, locker.ErrLost):
		return err
	case err == nil:
		r.log.Info("released", "name", r.name)
	case r.json:
		r.log.Warn("release not confirmed", "name", r.name, "error", err.Error())
	default:
		fmt.Fprintf(r.stderr, "locker: the release of %s is not confirmed, it may stay locked for %v: %v\n", printable(r.name), r.connection.ttl, oneLine(err.Error()))
	}
	return nil
}

// obeying calls f with a context that a signal ends. A second signal ends the wait for f.
func (r *run) obeying(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	for ended := error(nil); ; {
		select {
		case err := <-done:
			if ended != nil {
				return ended
			}
			return err
		case s := <-r.signals:
			number, ok := s.(syscall.Signal)
			if !ok || slices.Contains(harmless, number) || suspends(number) {
				continue
			}
			if ended != nil {
				return ended
			}
			r.log.Info("signal", "signal", number.String())
			ended = &exitError{code: exitSignal + int(number)}
			cancel()
		}
	}
}
