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
)

func (p *program) watch() *cobra.Command {
	var f format
	var prefix, keyPrefix string
	cmd := &cobra.Command{
		Use:   "watch NAME | --prefix PREFIX",
		Short: "Print who holds a name, and each change, until interrupted",
		Long: `Watch prints who holds NAME now, and then a line whenever that changes, until it is
interrupted. With --prefix it does so for all names that begin with PREFIX; a name that nobody
holds is printed once it has been held. Disconnects do not end it: it goes on with what is
true when etcd is back. If changes come faster than they can be printed some are skipped, but
never the newest.

Because --prefix is about names here, the prefix of the keys is --key-prefix.`,
		Example: `  locker watch www.example.com
  locker watch --prefix www. -o json | jq -r 'select(.state == "free") | .name'`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || (len(args) == 1) == (prefix != "") {
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
				if len(args) == 1 {
					return p.printStates(ctx, c, c.Watch(ctx, args[0]), f)
				}
				return p.printStates(ctx, c, c.WatchPrefix(ctx, prefix), f)
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
func (p *program) printStates(ctx context.Context, c *locker.Client, states iter.Seq2[locker.State, error], f format) error {
	for state, err := range states {
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		shown := transition{time.Now().UTC().Truncate(time.Millisecond), state.Revision, state.Holders, row{Name: state.Name, State: stateFree}}
		if state.Held {
			shown.row = rowOf(p.entryOf(ctx, c, state.Holder, f))
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

// entryOf returns the entry of a holder. Who it belongs to is asked for only if that is shown,
// and left out if the answer takes long.
func (p *program) entryOf(ctx context.Context, c *locker.Client, holder locker.Holder, f format) locker.Entry {
	found := locker.Entry{Holder: holder, Held: true}
	if f == formatTable {
		return found
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	queue, _ := c.Queue(ctx, holder.Name)
	if i := slices.IndexFunc(queue, func(e locker.Entry) bool { return e.Token == holder.Token }); i >= 0 {
		found.Key, found.Owner = queue[i].Key, queue[i].Owner
	}
	return found
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
