// Bench measures Locker against bare etcd and etcd's own Mutex, and on request against
// other lock services; with -scale, what locks, waiters, clients and watchers cost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

const etcdVersion = "v3.7.3"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
	case interrupted:
		fmt.Fprintln(os.Stderr, "\ninterrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings holds the values of the command-line flags.
type settings struct {
	quick     bool
	scale     bool
	rows      string
	rounds    int
	members   int
	program   string
	endpoints string
	out       string
	profile   string
	peers     peerAddresses
}

func parse(args []string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: go run ./bench [flags]\n\nMeasures Locker, bare etcd and etcd's Mutex in interleaved rounds against a real etcd and prints a table.\n\nFlags:")
		flags.PrintDefaults()
	}
	flags.BoolVar(&s.quick, "quick", false, "finish in less than a minute: fewer and shorter rounds, less work")
	flags.BoolVar(&s.scale, "scale", false, "instead of the rows, measure what locks, waiters, clients and watchers cost as their number grows, and print Markdown tables")
	flags.StringVar(&s.rows, "row", "", "run only these `rows`, such as P4 or P4,P6")
	flags.IntVar(&s.rounds, "rounds", 0, "rounds per side (default 5, or 3 with -quick)")
	flags.IntVar(&s.members, "members", 1, "number of etcd processes, 1 or 3")
	flags.StringVar(&s.program, "etcd", "", "etcd `program` to run (default: "+etcdVersion+", compiled once)")
	flags.StringVar(&s.endpoints, "endpoints", "", "comma-separated `addresses` of a running cluster to use instead")
	flags.StringVar(&s.out, "out", "", "write results.json, results.md and results.svg (results-3.* with -members 3) to this `directory`, such as bench/results")
	flags.StringVar(&s.profile, "profile", "", "write CPU profiles of this process and of etcd during Locker's rounds to this `directory`")
	flags.StringVar(&s.peers.redis, "redis", "", "`address` of a Redis server; also measures redislock, redsync and rueidislock")
	flags.StringVar(&s.peers.zookeeper, "zookeeper", "", "`address` of a ZooKeeper server; also measures its lock recipe")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q; see -h", flags.Arg(0))
	}
	if s.members != 1 && s.members != 3 {
		return s, fmt.Errorf("-members is %d, want 1 or 3", s.members)
	}
	if s.scale {
		var err error
		flags.Visit(func(f *flag.Flag) {
			if !slices.Contains([]string{"scale", "quick", "etcd"}, f.Name) {
				err = fmt.Errorf("-scale cannot be combined with -%s", f.Name)
			}
		})
		return s, err
	}
	return s, nil
}

// command runs the rows selected by args, prints the table to stdout and, with -out,
// writes the result files. With -scale it does what runScale does instead.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	size := fullWorkload
	if s.quick {
		size = quickWorkload
	}
	if s.rounds > 0 {
		size.rounds = s.rounds
	}
	chosen, err := choose(rows(size), s.rows)
	if err != nil {
		return err
	}
	r := &runner{workload: size, peers: s.peers, id: fmt.Sprintf("%04x", rand.N(1<<16)), progress: newProgress(stderr)}
	if s.profile != "" {
		r.profiles = &profiles{dir: s.profile}
	}
	if s.scale {
		return r.runScale(ctx, s, stdout)
	}
	cleanUp, err := r.prepare(ctx, s)
	if err != nil {
		return err
	}
	defer cleanUp()
	servers, err := r.peers.describe(ctx)
	if err != nil {
		return err
	}
	rep, err := r.report(ctx, chosen)
	if err != nil {
		return err
	}
	rep.Machine.Peers = servers
	if err := rep.writeText(stdout); err != nil {
		return err
	}
	if len(rep.Failed) > 0 {
		return fmt.Errorf("rows not measured: %s", strings.Join(rep.Failed, ", "))
	}
	if s.out == "" {
		return nil
	}
	return rep.writeFiles(s.out)
}

// choose returns the rows with the given comma-separated IDs, or all rows if ids is empty.
func choose(all []row, ids string) ([]row, error) {
	if ids == "" {
		return all, nil
	}
	wanted := strings.Split(strings.ToUpper(ids), ",")
	for _, id := range wanted {
		if !slices.ContainsFunc(all, func(r row) bool { return r.id == id }) {
			return nil, fmt.Errorf("no such row: %q", id)
		}
	}
	return slices.DeleteFunc(all, func(r row) bool { return !slices.Contains(wanted, r.id) }), nil
}

// prepare makes sure that there is an etcd program to start and creates a directory for
// its data. The directory is below the user's cache directory, because the one for
// temporary files may be in memory.
func (r *runner) prepare(ctx context.Context, s settings) (cleanUp func(), err error) {
	if s.endpoints != "" {
		r.endpoints = strings.Split(s.endpoints, ",")
	} else if s.program == "" {
		if s.program, err = etcdproc.Build(ctx, etcdVersion, r.progress); err != nil {
			return nil, err
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	cache = filepath.Join(cache, "locker")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(cache, "bench-")
	if err != nil {
		return nil, err
	}
	r.etcd = etcdproc.Options{Program: s.program, Members: s.members, Dir: dir}
	if r.profiles != nil {
		r.etcd.Flags = []string{"--enable-pprof"}
	}
	return func() { _ = os.RemoveAll(dir) }, nil
}

// report runs the chosen rows. If a row fails, the others are still measured.
func (r *runner) report(ctx context.Context, chosen []row) (*report, error) {
	began := time.Now()
	rep := &report{Members: r.etcd.Members, Quick: r.workload.quick, Rounds: r.workload.rounds, Round: r.workload.period.String()}
	if len(r.endpoints) > 0 {
		rep.Members = 0
	}
	var err error
	if rep.Machine, err = describeMachine(r.etcd.Dir); err != nil {
		return nil, err
	}
	for _, w := range chosen {
		results, err := r.run(ctx, w)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			r.progress.logf("%v", err)
			r.trouble = append(r.trouble, err.Error())
			rep.Failed = append(rep.Failed, w.id)
		}
		for _, res := range results {
			r.progress.logf("%s", res.summary())
		}
		rep.Results = append(rep.Results, results...)
	}
	rep.Trouble, rep.Machine.Etcd = r.trouble, r.version
	rep.Took = time.Since(began).Round(time.Second).String()
	return rep, nil
}
