package main

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/show"
)

func (p *program) watch() *cobra.Command {
	var f format
	var prefix, keyPrefix string
	cmd := &cobra.Command{
		Use:   "watch NAME | --prefix PREFIX",
		Short: "Print who holds a name, and each change, until interrupted",
		Long: `Watch prints who holds NAME now, and then a line whenever that changes, until it is
interrupted. With --prefix it does so for all names that begin with PREFIX; a name that nobody
holds is printed once it has been held; an empty PREFIX means all names. Disconnects do not end it: it goes on with what is
true when etcd is back. If changes come faster than they can be printed some are skipped, but
never the newest.

Because --prefix is about names here, the prefix of the keys is --key-prefix.`,
		Example: `  locker watch www.example.com
  locker watch --prefix www. -o json | jq -r 'select(.state == "free") | .name'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || (len(args) == 1) == cmd.Flags().Changed("prefix") {
				return fmt.Errorf("give either one NAME or --prefix PREFIX")
			}
			return nil
		},
		ValidArgsFunction: p.completeName,
		RunE: func(cmd *cobra.Command, args []string) error {
			if keyPrefix != "" {
				p.connection.prefix = keyPrefix
			}
			return p.connected(cmd.Context(), func(ctx context.Context, c *locker.Client, _ *clientv3.Client) error {
				w := &watched{client: c, shown: f != formatTable}
				if len(args) == 1 {
					return p.printStates(ctx, c.Watch(ctx, args[0]), w, f)
				}
				w.readAll(ctx, prefix, p.connection.dialTimeout)
				return p.printStates(ctx, c.WatchPrefix(ctx, prefix), w, f)
			})
		},
	}
	outputFlag(cmd, &f)
	cmd.Flags().StringVar(&prefix, "prefix", "", "watch all names that begin with it")
	cmd.Flags().StringVar(&keyPrefix, "key-prefix", "", `prefix of the keys in etcd, as --prefix of other commands (default "`+locker.DefaultPrefix+`")`)
	return cmd
}

// transition is a state as it is shown: a row, and when it was so.
type transition struct {
	Time     time.Time `json:"time"`
	Revision int64     `json:"revision"`
	Holders  int       `json:"holders"`
	row
}

// printStates prints states until they end. Being interrupted is no error.
func (p *program) printStates(ctx context.Context, states iter.Seq2[locker.State, error], w *watched, f format) error {
	for state, err := range states {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		shown := transition{time.Now().UTC().Truncate(time.Millisecond), state.Revision, state.Holders, row{Name: state.Name, Entry: show.Entry{State: stateFree}}}
		if state.Held {
			shown.row = rowOf(w.entryOf(ctx, state.Holder))
		} else {
			delete(w.queues, state.Name)
		}
		if f == formatJSON {
			err = printJSON(p.stdout, shown, "")
		} else {
			err = output(p.stdout, []byte(shown.line(f)+"\n"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// watched has the queues of the names that are watched, as they were when somebody held the
// name who was not known yet: who waited then is known once it holds.
type watched struct {
	client *locker.Client
	shown  bool // whether it is shown who an entry belongs to, which a state does not say
	queues map[string][]locker.Entry
}

// readAll reads the queues of all names that begin with prefix. If the answer takes longer
// than patience, or the user may not do that, each is read once it is needed.
func (w *watched) readAll(ctx context.Context, prefix string, patience time.Duration) {
	if !w.shown {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	entries, err := w.client.Queues(ctx, prefix)
	if err != nil {
		return // what there is of the answer may lack the owners
	}
	w.queues = make(map[string][]locker.Entry)
	for _, e := range entries {
		w.queues[e.Name] = append(w.queues[e.Name], e)
	}
}

// entryOf returns the entry of a holder. Whose it is is left out if the answer takes long.
func (w *watched) entryOf(ctx context.Context, holder locker.Holder) locker.Entry {
	found := locker.Entry{Holder: holder, Held: true}
	if !w.shown || w.find(&found) {
		return found
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	queue, err := w.client.Queue(ctx, holder.Name)
	if err != nil {
		return found
	}
	if w.queues == nil {
		w.queues = make(map[string][]locker.Entry)
	}
	w.queues[holder.Name] = queue
	w.find(&found)
	return found
}

// find completes an entry with what is known, and reports whether that is anything.
func (w *watched) find(entry *locker.Entry) bool {
	queue := w.queues[entry.Name]
	i := slices.IndexFunc(queue, func(e locker.Entry) bool { return e.Token == entry.Token && e.Lease == entry.Lease })
	if i < 0 {
		return false
	}
	entry.Key, entry.Owner = queue[i].Key, queue[i].Owner
	return true
}

// line returns a state as a line.
func (t transition) line(f format) string {
	cells := []string{t.Time.Format(time.RFC3339), printable(t.Name), t.State}
	if t.State != stateFree {
		state := t.holding()
		if t.Holders > 1 {
			state += ", " + strconv.Itoa(t.Holders) + " holders"
		}
		cells = append(cells[:2], state, "token "+strconv.FormatInt(t.Token, 10), t.value(f))
		if f == formatWide {
			cells = append(cells, t.process(), t.program(), "lease "+t.lease())
		}
	}
	if f == formatWide {
		cells = append(cells, "revision "+strconv.FormatInt(t.Revision, 10))
	}
	return strings.Join(cells, "  ")
}
