package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/term"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
)

// force is the command force-unlock.
type force struct {
	program    *program
	name       string
	token      int64
	yes, lease bool
	format     format
}

func (p *program) forceUnlock() *cobra.Command {
	f := &force{program: p}
	cmd := &cobra.Command{
		Use:   "force-unlock NAME --token N",
		Short: "Take a lock away from its holder",
		Long: `Force-unlock removes the entry with that token from the queue of NAME, whether it holds the name
or waits for it, and nothing else. It shows the entry first, says what follows, and asks. An
entry without a lease, which would stay forever, is removed in the same way. "locker queue"
shows the tokens.

The old holder may go on for up to a third of its TTL before it learns of it; its guarded
writes are refused from the moment of the removal on. The program of an entry without a lease,
or of one that is not of Locker, may never notice: stop it first.

With --lease the lease of the entry is revoked instead: everything that is attached to it goes
along, and is listed first.

The exit code is 0 only if the entry was removed.`,
		Example: `  locker queue www.example.com
  locker force-unlock www.example.com --token 4711
  locker force-unlock www.example.com --token 4711 --lease --yes`,
		Args:              exactly("NAME"),
		ValidArgsFunction: p.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.name = args[0]
			if err := f.check(); err != nil {
				return err
			}
			return p.connected(cmd.Context(), f.run)
		},
	}
	outputFlag(cmd, &f.format)
	cmd.Flags().Int64Var(&f.token, "token", 0, "token of the entry, as locker queue shows it")
	cmd.Flags().BoolVar(&f.yes, "yes", false, "do not ask")
	cmd.Flags().BoolVar(&f.lease, "lease", false, "revoke the lease of the entry, with everything on it")
	return cmd
}

// check refuses what cannot be done, before anything is asked of etcd.
func (f *force) check() error {
	if f.token <= 0 {
		return usageError("give --token N with the token of the entry, which %q shows", "locker queue "+f.name)
	}
	if stdin, ok := f.program.stdin.(*os.File); !f.yes && (!ok || !term.IsTerminal(int(stdin.Fd()))) {
		return usageError("the standard input is no terminal, so nobody can be asked; give --yes to go on without a question")
	}
	return nil
}

// run shows the entry, asks, and removes it.
func (f *force) run(ctx context.Context, c *locker.Client, etcd *clientv3.Client) error {
	entries, err := f.show(ctx, c, etcd)
	if err != nil {
		return err
	}
	if err := f.confirm(ctx); err != nil {
		return err
	}
	return f.remove(ctx, c, etcd, entries)
}

// show shows the entries with the token and what follows, and returns the entries.
func (f *force) show(ctx context.Context, c *locker.Client, etcd *clientv3.Client) ([]locker.Entry, error) {
	ctx, cancel := f.program.inTime(ctx)
	defer cancel()
	entries, err := f.entries(ctx, c)
	if err != nil {
		return nil, err
	}
	leases := askLeases(ctx, etcd, entries, f.program.connection.dialTimeout)
	rows := make([]row, len(entries))
	for i, e := range entries {
		rows[i] = leases.row(e)
	}
	if err := printTable(f.program.stderr, queueHeader(f.format), queueLines(rows, f.format)); err != nil {
		return nil, err
	}
	f.say("\n%s", f.consequences(rows))
	if err := f.sayAlongside(ctx, c, entries); err != nil {
		return nil, err
	}
	if f.lease {
		err = f.listLeases(ctx, c, etcd, entries)
	}
	return entries, err
}

// remove removes the entries that were shown.
func (f *force) remove(ctx context.Context, c *locker.Client, etcd *clientv3.Client, shown []locker.Entry) error {
	ctx, cancel := f.program.inTime(ctx)
	defer cancel()
	if f.lease {
		return f.revoke(ctx, c, etcd, shown)
	}
	removed, err := c.ForceUnlock(ctx, f.name, f.token)
	if ctx.Err() != nil && err != nil {
		return f.unsure(ctx)
	}
	if err != nil {
		return f.missing(err)
	}
	return f.report(removed)
}

// unsure returns the error that the end of ctx has cut off a removal.
func (f *force) unsure(ctx context.Context) error {
	return fmt.Errorf("it is not known whether anything was removed: %w; %q shows who is there", context.Cause(ctx), "locker queue "+shellWord(f.name))
}

// say explains on stderr: stdout is for the outcome.
func (f *force) say(text string, args ...any) { fmt.Fprintf(f.program.stderr, text+"\n", args...) }

// entries returns the entries with the token, of which there is at least one.
func (f *force) entries(ctx context.Context, c *locker.Client) ([]locker.Entry, error) {
	queue, err := c.Queue(ctx, f.name)
	if err != nil {
		return nil, err
	}
	entries := slices.DeleteFunc(queue, func(e locker.Entry) bool { return e.Token != f.token })
	if len(entries) == 0 {
		return nil, f.missing(&locker.NotFoundError{Name: f.name, Token: f.token})
	}
	if f.lease && entries[0].Lease == 0 {
		return nil, usageError("the entry with token %d has no lease; leave out --lease", f.token)
	}
	return entries, nil
}

// missing makes one sentence of the error that there is no such entry.
func (f *force) missing(err error) error {
	var none *locker.NotFoundError
	if errors.As(err, &none) {
		return fmt.Errorf("nothing was removed: nobody has token %d in the queue of %q; %q shows who is there", f.token, f.name, "locker queue "+f.name)
	}
	return err
}

// consequences says what follows from the removal.
func (f *force) consequences(rows []row) string {
	first := rows[0]
	noticed := !slices.ContainsFunc(rows, func(r row) bool { return r.Lease == "" || r.Owner == nil })
	var text string
	switch {
	case first.State == show.Held && noticed:
		delay := "TTL/3"
		if first.Granted != nil { // which has the lock-delay in it, if there is one
			delay += fmt.Sprintf(" (at most %v)", (time.Duration(*first.Granted) * time.Second / 3).Round(100*time.Millisecond))
		}
		text = "Whoever is next in the queue can hold the name at once. The old holder may go on for up to " + delay +
			"; its guarded writes are refused from now on."
	case first.State == show.Held:
		text = "Whoever is next in the queue can hold the name at once."
	case noticed:
		text = "It only waits: its call to Lock returns an error."
	default:
		text = "It only waits."
	}
	if !noticed {
		why := "It has no lease"
		if first.Lease != "" {
			why = "It is not an entry of Locker"
		}
		text += "\n" + why + ": its program may never notice; stop it first."
	}
	if len(rows) > 1 {
		text += fmt.Sprintf("\n%d entries have this token, and all of them are removed.", len(rows))
	}
	return text
}

// sayAlongside says which other names may go with the entries: those of a lock of several names
// have one token and one lease, as do locks that one transaction has taken.
func (f *force) sayAlongside(ctx context.Context, c *locker.Client, entries []locker.Entry) error {
	all, err := c.Queues(ctx, "")
	switch {
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return nil // whoever may not read them is not told
	case err != nil:
		return err
	}
	var names []string
	for _, e := range all {
		together := func(shown locker.Entry) bool { return e.Token == shown.Token && e.Lease == shown.Lease && e.Lease != 0 }
		if e.Name != f.name && slices.ContainsFunc(entries, together) && !slices.Contains(names, printable(e.Name)) {
			names = append(names, printable(e.Name))
		}
	}
	if len(names) > 0 {
		f.say("Other names have the same token and lease: %s. If that is one lock of several names, all of it is lost.", strings.Join(names, ", "))
	}
	return nil
}

// confirm asks, unless that is not wanted. A read from a terminal cannot be cancelled: if ctx
// ends first, its goroutine ends with the next line, or with the program.
func (f *force) confirm(ctx context.Context) error {
	if f.yes {
		return nil
	}
	fmt.Fprint(f.program.stderr, "\nRemove it? Type yes: ")
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(io.LimitReader(f.program.stdin, 100)).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		if line == "yes" || line == "y" {
			return nil
		}
		return errors.New("nothing was removed: the answer was not yes")
	case <-ctx.Done():
		return errors.New("nothing was removed: interrupted")
	}
}

// report prints what was removed.
func (f *force) report(removed []locker.Entry) error {
	if f.format == formatJSON {
		rows := make([]row, len(removed))
		for i, e := range removed {
			rows[i] = rowOf(e)
		}
		return printJSON(f.program.stdout, rows, "  ")
	}
	return output(f.program.stdout, fmt.Appendf(nil, "removed the entry with token %d from the queue of %s\n", f.token, printable(f.name)))
}
