// Command chaos runs processes that lock names on a real etcd, breaks what can be broken, and judges
// what came of it. README.md says how to read its reports.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jagregory/locker/v2/internal/etcdproc"
)

const (
	clientCommand = "chaos-client" // makes the program a client; the harness uses it
	overLocker    = "locker"
	overMutex     = "mutex"
	etcdVersion   = "v3.7.3"
	processes     = 5
)

// settings are what the command line says.
type settings struct {
	seed     uint64
	duration time.Duration
	round    time.Duration
	ttl      time.Duration
	members  []int
	only     []string
	over     string
	unfenced bool
	load     string
	script   string
	long     bool
	dir      string
	names    int
	rest     time.Duration
	hold     time.Duration
	schedule bool
}

func main() {
	if err := checkClock(); err != nil {
		exit(err)
	}
	if os.Getenv(clientCommand) != "" {
		exit(clientProcess(os.Stdin, os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	s, err := parse(os.Args[1:])
	if err == nil {
		err = s.run(ctx, os.Stdout)
	}
	stop()
	exit(err)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func parse(args []string) (s settings, err error) {
	flags := flag.NewFlagSet("chaos", flag.ExitOnError)
	flags.Uint64Var(&s.seed, "seed", 0, "what the faults are drawn from; 0 draws one")
	flags.DurationVar(&s.duration, "duration", 30*time.Second, "how long there are faults, in all")
	flags.DurationVar(&s.round, "round", time.Minute, "how much of that one cluster has to stand")
	flags.DurationVar(&s.ttl, "ttl", 2*time.Second, "of the locks")
	members := flags.String("members", "3", "of the clusters, which take turns: 1, 3, or 1,3")
	only := flags.String("faults", "", "only these kinds, with commas in between; all if empty")
	flags.StringVar(&s.over, "over", overLocker, "what is tested: locker, or mutex for etcd's concurrency.Mutex")
	flags.BoolVar(&s.unfenced, "unfenced", false, "let the resource accept any token")
	flags.StringVar(&s.load, "load", "", "with a load, and with the faults that must not cost a hold: crowd (1,000 clients on 100 names) or names (100,000 names held)")
	flags.StringVar(&s.script, "script", "", "instead of rounds, one of those that are always the same: "+strings.Join(slices.Sorted(maps.Keys(scripts)), ", "))
	flags.StringVar(&s.dir, "dir", "", "where to leave the history; a temporary directory, removed if nothing was found, if empty")
	flags.IntVar(&s.names, "names", 6, "how many names all processes want")
	flags.DurationVar(&s.rest, "rest", 0, "how much calmer: a time without, after each fault")
	flags.DurationVar(&s.hold, "hold", 0, "how long a post is held, about at most; 4 TTLs if 0")
	flags.BoolVar(&s.long, "long", false, "let one process have a TTL of a minute, which else is so in every third round")
	flags.BoolVar(&s.schedule, "schedule", false, "print the faults that would come, and do nothing")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if *only != "" {
		s.only = strings.Split(*only, ",")
	}
	for _, text := range strings.Split(*members, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n != 1 && n != 3 {
			return s, fmt.Errorf("%q members: want 1 or 3", text)
		}
		s.members = append(s.members, n)
	}
	if s.over != overLocker && s.over != overMutex {
		return s, fmt.Errorf("over %q: want %s or %s", s.over, overLocker, overMutex)
	}
	if flags.NArg() > 0 || s.duration <= 0 || s.round <= 0 || s.ttl < 2*time.Second || s.names < 1 || s.rest < 0 {
		return s, fmt.Errorf("arguments %q: there are none, durations are more than 0, and etcd grants 2s at least", flags.Args())
	}
	if s.hold <= 0 {
		s.hold = 4 * s.ttl
	}
	for s.seed == 0 {
		s.seed = rand.Uint64() >> 16 // short enough to type
	}
	return s, errors.Join(checkKinds(s.only), checkLoad(s.load), checkScript(s.script))
}

// run makes rounds until the duration is used up, also after one that has found something.
func (s settings) run(ctx context.Context, w io.Writer) error {
	if s.schedule {
		for _, f := range s.plan(0, min(s.duration, s.round)).draw() {
			fmt.Fprintln(w, f)
		}
		return nil
	}
	program, err := etcdproc.Build(ctx, etcdVersion, w)
	if err != nil {
		return err
	}
	if s.script != "" {
		return s.perform(ctx, w, program)
	}
	var errs []error
	rounds, all, unfired := 0, newSummary(), make(map[string]bool)
	for left := s.duration; left > 0 && ctx.Err() == nil; rounds++ {
		d := min(s.round, left)
		if left-d < s.round/2 {
			d = left // no round that is too short to mean anything
		}
		left -= d
		h, err := s.one(ctx, w, s.plan(rounds, d), program)
		errs = append(errs, err)
		if h != nil {
			all.add(h.summary())
			for _, kind := range h.unfired() {
				unfired[kind] = true
			}
		}
	}
	if rounds > 1 {
		fmt.Fprintf(w, "in all, %d rounds with %v of faults:\n", rounds, s.duration)
		all.write(w)
	}
	for kind := range unfired {
		if all.faults[kind] == 0 {
			errs = append(errs, fmt.Errorf("there was no %s", kind))
		}
	}
	// A round may have none: what a storm has left may last into the time that was to be calm.
	if len(all.alone) == 0 && len(s.only) == 0 && s.load == "" && s.over == overLocker && s.duration >= everyKind {
		errs = append(errs, errors.New("no name was taken over with nothing else going on"))
	}
	return errors.Join(errs...)
}

// perform plays a script.
func (s settings) perform(ctx context.Context, w io.Writer, program string) error {
	dir, err := os.MkdirTemp("", "locker-chaos-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	found, err := scripts[s.script].perform(ctx, w, program, dir)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%d violations; to repeat it: go run ./chaos -script %s", len(found), s.script)
	}
	return err
}

// plan is that of a round.
func (s settings) plan(i int, d time.Duration) plan {
	p := plan{
		seed: s.seed + uint64(i), duration: d, ttl: s.ttl, lone: true,
		members: s.members[i%len(s.members)], processes: processes, only: s.only, rest: s.rest, long: s.long,
	}
	if s.load != "" {
		p.ttl, p.only, p.lone, p.long = loadTTL, gentle, false, false
	}
	return p
}

// one makes a round and reports it.
func (s settings) one(ctx context.Context, w io.Writer, p plan, program string) (*history, error) {
	fmt.Fprintf(w, "round with seed %d: %v of faults on %d member(s), over %s %s\n", p.seed, p.duration, p.members, s.over, s.load)
	dir, err := s.newDir()
	if err != nil {
		return nil, err
	}
	r := round{plan: p, over: s.over, unfenced: s.unfenced, program: program, dir: dir, names: s.names, workers: 6, hold: s.hold}
	if s.load != "" {
		r = r.underLoad(s.load)
	}
	h, err := r.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("round with seed %d: %w (see %s)", p.seed, err, dir)
	}
	violations := judge(h)
	missing := h.empty()
	report(w, h)
	if s.load != "" {
		reportSizes(w, h)
	}
	explain(w, h, violations)
	for _, what := range missing {
		fmt.Fprintf(w, "  EMPTY: %s\n", what)
	}
	if err := r.keep(w, len(violations)+len(missing) > 0 || s.dir != ""); err != nil {
		return h, err
	}
	if len(violations)+len(missing) > 0 {
		return h, fmt.Errorf("%d violations and %d things missing; to replay it: %s", len(violations), len(missing), s.command(p))
	}
	return h, nil
}

func (s settings) newDir() (string, error) {
	if s.dir == "" {
		return os.MkdirTemp("", "locker-chaos-")
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", err
	}
	return os.MkdirTemp(s.dir, "round-")
}

// command is what makes the same round again.
func (s settings) command(p plan) string {
	c := fmt.Sprintf("go run ./chaos -seed %d -duration %v -round %v -members %d -ttl %v -names %d -rest %v -hold %v -over %s",
		p.seed, p.duration, p.duration, p.members, s.ttl, s.names, p.rest, s.hold, s.over)
	if len(p.only) > 0 {
		c += " -faults " + strings.Join(p.only, ",")
	}
	if s.load != "" {
		c += " -load " + s.load
	}
	if p.hasLong() {
		c += " -long"
	}
	if s.unfenced {
		c += " -unfenced"
	}
	return c
}
