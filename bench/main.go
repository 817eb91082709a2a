// Command bench measures Locker against bare etcd, against etcd's own Mutex and, if asked, against others.
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
	context.AfterFunc(ctx, stop) // a second signal does not wait for anything
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

// settings are what the command line says.
type settings struct {
	quick     bool
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
		fmt.Fprintln(stderr, "usage: go run ./bench [flags]\n\nMeasures Locker, bare etcd and etcd's Mutex in turns on an etcd process, and prints a table.\n\nFlags:")
		flags.PrintDefaults()
	}
	flags.BoolVar(&s.quick, "quick", false, "take less than a minute: shorter and fewer rounds, less work")
	flags.StringVar(&s.rows, "row", "", "only these `rows`, such as P4 or P4,P6")
	flags.IntVar(&s.rounds, "rounds", 0, "rounds of each side (default 5, with -quick 3)")
	flags.IntVar(&s.members, "members", 1, "etcd processes, 1 or 3")
	flags.StringVar(&s.program, "etcd", "", "the etcd `program` to run (default: "+etcdVersion+", compiled once)")
	flags.StringVar(&s.endpoints, "endpoints", "", "`addresses` of a running cluster to use instead, separated by commas")
	flags.StringVar(&s.out, "out", "", "a `directory` for results.json, results.md and results.svg, such as bench/results")
	flags.StringVar(&s.profile, "profile", "", "a `directory` for CPU profiles of Locker's rounds, of this process and of etcd")
	flags.StringVar(&s.peers.redis, "redis", "", "`address` of a Redis, for redislock, redsync and rueidislock")
	flags.StringVar(&s.peers.zookeeper, "zookeeper", "", "`address` of a ZooKeeper, for its lock recipe")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("%q is no flag; see -h", flags.Arg(0))
	}
	return s, nil
}

// command runs the rows that args ask for, writes the table to stdout, and files if they are asked for.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	scale := fullScale
	if s.quick {
		scale = quickScale
	}
	if s.rounds > 0 {
		scale.rounds = s.rounds
	}
	chosen, err := choose(rows(scale), s.rows)
	if err != nil {
		return err
	}
	r := &runner{scale: scale, peers: s.peers, id: fmt.Sprintf("%04x", rand.N(1<<16)), progress: newProgress(stderr)}
	if s.profile != "" {
		r.profiles = &profiles{s.profile}
	}
	cleanUp, err := r.prepare(ctx, s)
	if err != nil {
		return err
	}
	defer cleanUp()
	rep, err := r.report(ctx, chosen)
	if err != nil {
		return err
	}
	if err := rep.writeText(stdout); err != nil {
		return err
	}
	if len(rep.Failed) > 0 {
		return fmt.Errorf("not measured: %s", strings.Join(rep.Failed, ", "))
	}
	if s.out == "" {
		return nil
	}
	return rep.writeFiles(s.out)
}

// choose returns the rows with the given IDs, or all of them.
func choose(all []row, ids string) ([]row, error) {
	if ids == "" {
		return all, nil
	}
	wanted := strings.Split(strings.ToUpper(ids), ",")
	for _, id := range wanted {
		if !slices.ContainsFunc(all, func(r row) bool { return r.id == id }) {
			return nil, fmt.Errorf("there is no row %q", id)
		}
	}
	return slices.DeleteFunc(all, func(r row) bool { return !slices.Contains(wanted, r.id) }), nil
}

// prepare sees to it that there is an etcd to start, and a directory for its data which is on a disk: that
// for temporary files may be in memory.
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

// report runs all rows. One that fails does not keep the others from being measured.
func (r *runner) report(ctx context.Context, rows []row) (*report, error) {
	began := time.Now()
	rep := &report{Members: r.etcd.Members, Quick: r.scale.quick, Rounds: r.scale.rounds, Round: r.scale.period.String()}
	if len(r.endpoints) > 0 {
		rep.Members = 0
	}
	var err error
	if rep.Machine, err = describeMachine(r.etcd.Dir); err != nil {
		return nil, err
	}
	for _, row := range rows {
		results, err := r.run(ctx, row)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			r.progress.say("%v", err)
			r.trouble = append(r.trouble, err.Error())
			rep.Failed = append(rep.Failed, row.id)
		}
		for _, res := range results {
			r.progress.say("%s", res.sentence())
		}
		rep.Results = append(rep.Results, results...)
	}
	rep.Trouble, rep.Machine.Etcd = r.trouble, r.version
	rep.Took = time.Since(began).Round(time.Second).String()
	return rep, nil
}
