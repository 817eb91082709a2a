package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/internal/backoff"
)

// lock waits for the lock. The errors that have exit codes of their own have them.
func (r *run) lock(ctx context.Context) (*locker.Lock, error) {
	if r.try {
		ctx, cancel := context.WithTimeout(ctx, r.connection.dialTimeout)
		defer cancel()
		l, err := r.client.TryLock(ctx, r.name, r.value, r.options()...)
		return l, r.refused(err)
	}
	if r.wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.wait)
		defer cancel()
	}
	r.log.Info("waiting", "name", r.name)
	defer r.showQueue(ctx)()
	for pause := (backoff.Pause{}); ; {
		l, err := r.client.Lock(ctx, r.name, r.value, r.options()...)
		var lost *locker.LostError
		if !errors.As(err, &lost) {
			return l, r.refused(err)
		}
		if lost.Reason == locker.Deleted {
			return nil, r.lost(err) // somebody does not want it to wait
		}
		_ = pause.Wait(ctx) // if ctx has ended, Lock will say so
	}
}

// options returns what the flags say about the lock.
func (r *run) options() []locker.LockOption {
	var kind []locker.LockOption
	if r.shared {
		kind = append(kind, locker.WithShared())
	}
	if r.limit != 0 {
		kind = append(kind, locker.WithLimit(r.limit))
	}
	opts := slices.Clone(kind)
	for _, name := range r.also {
		opts = append(opts, locker.And(name, r.value, kind...))
	}
	return opts
}

// refused returns the error of a lock that was not taken.
func (r *run) refused(err error) error {
	var locked *locker.LockedError
	isLocked := errors.As(err, &locked)
	switch {
	case r.try && isLocked:
		return &exitError{r.busy, fmt.Errorf("%s is %w", printable(locked.Holder.Name), locked)}
	case r.wait > 0 && isLocked && errors.Is(err, context.DeadlineExceeded):
		return &exitError{r.busy, fmt.Errorf("%s is not free after %v: %w", printable(locked.Holder.Name), r.wait, locked)}
	case r.wait > 0 && errors.Is(err, context.DeadlineExceeded):
		return &exitError{r.busy, fmt.Errorf("%s is not locked after %v: %w", printable(r.name), r.wait, err)}
	}
	return asUsage(err)
}

// environmentUnder returns the environment of the command: what locker has inherited, and
// what says which lock is held. That replaces what an outer lock has set. It also replaces
// LOCKER_KEY if that names the file with a key of TLS, which a locker in the command then
// finds in ETCDCTL_KEY.
func environmentUnder(l *locker.Lock) []string {
	token := strconv.FormatInt(l.Token(), 10)
	set := []string{
		"LOCKER_NAME=" + l.Name(),
		"LOCKER_KEY=" + l.Key(),
		"LOCKER_TOKEN=" + token,
		"LOCKER_LEASE=" + path.Base(l.Key()),
		"ETCD_LOCK_KEY=" + l.Key(),
		"ETCD_LOCK_REV=" + token,
	}
	if file := os.Getenv("LOCKER_KEY"); file != "" && !isOfRun("LOCKER_KEY") {
		set = append(set, "ETCDCTL_KEY="+file)
	}
	inherited := slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return slices.ContainsFunc(set, func(s string) bool {
			name, _, _ := strings.Cut(s, "=")
			return strings.HasPrefix(variable, name+"=")
		})
	})
	return append(inherited, set...)
}

// find returns the path of a program. Its errors have the exit codes of the shell.
func find(program string) (string, error) {
	found, err := exec.LookPath(program)
	if err == nil || errors.Is(err, exec.ErrDot) { // $PATH asks for the current directory: so be it
		return found, nil
	}
	return "", cannotRun(program, err)
}

// cannotRun returns the error of a command that cannot be run.
func cannotRun(program string, err error) error {
	var why *exec.Error
	if errors.As(err, &why) {
		err = why.Err
	}
	code := exitNotExecutable
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		code = exitNotFound
	}
	return &exitError{code, fmt.Errorf("%s cannot be run: %w", printable(program), err)}
}

// reports returns where the events go: nowhere, or to stderr as text or as JSON.
func (r *run) reports() slog.Handler {
	options := &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.LevelKey:
			return slog.Attr{}
		case a.Key == slog.MessageKey:
			a.Key = "event"
		}
		return a
	}}
	switch {
	case r.json:
		return slog.NewJSONHandler(r.stderr, options)
	case r.verbose:
		return slog.NewTextHandler(r.stderr, options)
	}
	return slog.DiscardHandler
}
