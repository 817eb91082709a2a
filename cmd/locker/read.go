package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

func (p *program) get() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Print the value of who holds a name",
		Long: `Get prints the value of the holder of NAME; of several holders one value a line, the oldest
first. A value that cannot be printed is quoted as in Go. If nobody holds the name, the exit
code is 1.`,
		Example: `  locker get www.example.com
  locker get -o json www.example.com | jq -r '.[0].value'`,
		Args:              exactly("NAME"),
		ValidArgsFunction: p.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.connected(cmd.Context(), func(ctx context.Context, c *locker.Client, etcd *clientv3.Client) error {
				return p.printHolders(ctx, c, etcd, args[0], f)
			})
		},
	}
	outputFlag(cmd, &f)
	return cmd
}

// connected calls f with a client, which is closed afterwards.
func (p *program) connected(ctx context.Context, f func(context.Context, *locker.Client, *clientv3.Client) error) error {
	c, etcd, stop, err := p.connection.open(ctx)
	if err != nil {
		return err
	}
	defer stop()
	return asUsage(f(ctx, c, etcd))
}

// inTime bounds how long a command reads: an etcd that was there may be gone. What is read may
// be much, so that is longer than a connection may take.
func (p *program) inTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, 10*p.connection.dialTimeout, errors.New("etcd takes longer than ten times --dial-timeout"))
}

// printHolders prints who holds name.
func (p *program) printHolders(ctx context.Context, c *locker.Client, etcd *clientv3.Client, name string, f format) error {
	ctx, cancel := p.inTime(ctx)
	defer cancel()
	if f == formatTable {
		holders, err := c.Holders(ctx, name)
		if err != nil {
			return nobody(name, err)
		}
		var b bytes.Buffer
		for _, holder := range holders {
			fmt.Fprintln(&b, printable(holder.Value))
		}
		return output(p.stdout, b.Bytes())
	}
	entries, err := c.Queue(ctx, name)
	if err != nil {
		return err
	}
	rows := p.holders(ctx, etcd, entries)
	if len(rows) == 0 {
		if f == formatJSON {
			err = printJSON(p.stdout, rows, "  ")
		}
		return errors.Join(nobody(name, &locker.NotFoundError{Name: name}), err)
	}
	return p.printHeld(rows, f)
}

// nobody makes one sentence of the error that nobody holds name.
func nobody(name string, err error) error {
	var missing *locker.NotFoundError
	if errors.As(err, &missing) {
		return fmt.Errorf("nobody holds %q", name)
	}
	return err
}

func (p *program) ls() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List who holds what",
		Long: `Ls lists the holders of all names that begin with PREFIX, a line each: with their process,
fencing token, how long their lease lives if it is not renewed ("–" if that is not known),
and how many wait for the name.`,
		Example: `  locker ls
  locker ls -o wide www.
  locker ls -o json | jq -r '.[] | select(.waiters > 0) | .name'`,
		Args: atMost("PREFIX"),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) > 0 {
				prefix = args[0]
			}
			return p.connected(cmd.Context(), func(ctx context.Context, c *locker.Client, etcd *clientv3.Client) error {
				ctx, cancel := p.inTime(ctx)
				defer cancel()
				entries, err := c.Queues(ctx, prefix)
				if err != nil {
					return err
				}
				rows := p.holders(ctx, etcd, entries)
				switch {
				case len(rows) == 0 && prefix == "":
					p.note("nothing is held")
				case len(rows) == 0:
					p.note("nobody holds a name that begins with %q", prefix)
				}
				return p.printHeld(rows, f)
			})
		},
		ValidArgsFunction: p.completeName,
	}
	outputFlag(cmd, &f)
	return cmd
}

// note says on stderr what the output does not.
func (p *program) note(text string, args ...any) {
	fmt.Fprintln(p.stderr, "locker:", oneLine(fmt.Sprintf(text, args...)))
}

// holders returns the rows of those who hold a name, with how many wait for it.
func (p *program) holders(ctx context.Context, etcd *clientv3.Client, entries []locker.Entry) []row {
	waiters := make(map[string]*int)
	holders := make([]locker.Entry, 0, len(entries))
	for _, e := range entries {
		if waiters[e.Name] == nil {
			waiters[e.Name] = new(int)
		}
		if e.Held {
			holders = append(holders, e)
		} else {
			*waiters[e.Name]++
		}
	}
	leases := askLeases(ctx, etcd, holders, p.connection.dialTimeout)
	rows := make([]row, len(holders))
	for i, e := range holders {
		rows[i] = leases.row(e)
		rows[i].Waiters = waiters[e.Name]
	}
	return rows
}

// printHeld prints holders.
func (p *program) printHeld(rows []row, f format) error {
	if f == formatJSON {
		return printJSON(p.stdout, rows, "  ")
	}
	if len(rows) == 0 {
		return nil
	}
	header := []string{"NAME", "STATE", "VALUE", "HOST:PID", "PROGRAM", "TOKEN", "TTL", "WAITERS"}
	if f == formatWide {
		header = append(header, "LEASE", "STARTED", "VERSION", "KEY")
	}
	lines := make([][]string, len(rows))
	for i, r := range rows {
		lines[i] = []string{
			printable(r.Name), r.holding(), r.value(f), r.process(), r.program(),
			strconv.FormatInt(r.Token, 10), r.ttl(), strconv.Itoa(*r.Waiters),
		}
		if f == formatWide {
			lines[i] = append(lines[i], r.lease(), r.since(), r.version(), printable(r.Key))
		}
	}
	return printTable(p.stdout, header, lines)
}

func (p *program) queue() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use:   "queue NAME",
		Short: "List everybody who holds a name or waits for it, in order",
		Long: `Queue lists everybody in the queue of NAME, the oldest first: holders, and those who wait.
STARTED is when the program was started. TTL is how long the lease lives if it is not renewed,
of what was granted.`,
		Example: `  locker queue www.example.com
  locker queue -o json www.example.com | jq length`,
		Args:              exactly("NAME"),
		ValidArgsFunction: p.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.connected(cmd.Context(), func(ctx context.Context, c *locker.Client, etcd *clientv3.Client) error {
				ctx, cancel := p.inTime(ctx)
				defer cancel()
				entries, err := c.Queue(ctx, args[0])
				if err != nil {
					return err
				}
				if len(entries) == 0 {
					p.note("nobody holds %q or waits for it", args[0])
				}
				return p.printQueue(ctx, etcd, entries, f)
			})
		},
	}
	outputFlag(cmd, &f)
	return cmd
}

// printQueue prints entries in their order.
func (p *program) printQueue(ctx context.Context, etcd *clientv3.Client, entries []locker.Entry, f format) error {
	leases := askLeases(ctx, etcd, entries, p.connection.dialTimeout)
	rows := make([]row, len(entries))
	for i, e := range entries {
		rows[i] = leases.row(e)
	}
	if f == formatJSON {
		return printJSON(p.stdout, rows, "  ")
	}
	if len(rows) == 0 {
		return nil
	}
	return printTable(p.stdout, queueHeader(f), queueLines(rows, f))
}

// queueHeader and queueLines are the table of a queue.
func queueHeader(f format) []string {
	header := []string{"TOKEN", "STATE", "KIND", "VALUE", "HOST:PID", "PROGRAM", "STARTED", "LEASE", "TTL"}
	if f == formatWide {
		header = append(header, "VERSION", "KEY")
	}
	return header
}

func queueLines(rows []row, f format) [][]string {
	lines := make([][]string, len(rows))
	for i, r := range rows {
		lines[i] = []string{
			strconv.FormatInt(r.Token, 10), r.State, r.kind(), r.value(f), r.process(), r.program(),
			r.since(), r.lease(), r.ttl(),
		}
		if f == formatWide {
			lines[i] = append(lines[i], r.version(), printable(r.Key))
		}
	}
	return lines
}
