// Command chaos tests Locker under fault injection: client processes lock names on a real etcd,
// faults are injected, and the recorded history is checked. README.md explains its reports.
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
	clientCommand = "chaos-client" // environment variable that makes the program a client process
	overLocker    = "locker"
	overMutex     = "mutex"
	etcdVersion   = "v3.7.3"
	processes     = 5
)

// settings holds the parsed command line.
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
	mixed    int
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
	flags.Uint64Var(&s.seed, "seed", 0, "seed of the schedule of faults; 0 picks one at random")
	flags.DurationVar(&s.duration, "duration", 30*time.Second, "total time under faults")
	flags.DurationVar(&s.round, "round", time.Minute, "time under faults per cluster")
	flags.DurationVar(&s.ttl, "ttl", 2*time.Second, "TTL of the locks")
	members := flags.String("members", "3", "cluster sizes, used in turn: 1, 3, or 1,3")
	only := flags.String("faults", "", "comma-separated kinds of fault to inject; all if empty")
	flags.StringVar(&s.over, "over", overLocker, "library under test: locker, or mutex for etcd's concurrency.Mutex")
	flags.BoolVar(&s.unfenced, "unfenced", false, "make the resource accept any token")
	flags.StringVar(&s.load, "load", "", "add a load and inject only faults that must not cost a hold: crowd (1,000 clients on 100 names) or names (100,000 names held)")
	flags.StringVar(&s.script, "script", "", "run a script instead of rounds: "+strings.Join(slices.Sorted(maps.Keys(scripts)), ", "))
	flags.StringVar(&s.dir, "dir", "", "directory in which to keep every history; if empty, a temporary one, removed unless a check fails")
	flags.IntVar(&s.names, "names", 6, "number of names that all processes compete for")
	flags.IntVar(&s.mixed, "mixed", 4, "number of names that are locked in all modes: shared, limited, exclusively, and two of them at once")
	flags.DurationVar(&s.rest, "rest", 0, "pause after each fault")
	flags.DurationVar(&s.hold, "hold", 0, "approximate maximum duration of long holds; 4 TTLs if 0")
	flags.BoolVar(&s.long, "long", false, "give one process a TTL of a minute in every round, not only in every third")
	flags.BoolVar(&s.schedule, "schedule", false, "print the schedule of faults and exit")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if *only != "" {
		s.only = strings.Split(*only, ",")
	}
	for _, text := range strings.Split(*members, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n != 1 && n != 3 {
			return s, fmt.Errorf("members %q: want 1 or 3", text)
		}
		s.members = append(s.members, n)
	}
	if s.over != overLocker && s.over != overMutex {
		return s, fmt.Errorf("over %q: want %s or %s", s.over, overLocker, overMutex)
	}
	if flags.NArg() > 0 || s.duration <= 0 || s.round <= 0 || s.ttl < 2*time.Second || s.names < 1 || s.mixed < 0 || s.rest < 0 {
		return s, fmt.Errorf("arguments %q: want none, positive durations, at least one name, and a TTL of at least 2s", flags.Args())
	}
	if s.hold <= 0 {
		s.hold = 4 * s.ttl
	}
	for s.seed == 0 {
		s.seed = rand.Uint64() >> 16 // short enough to type
	}
	return s, errors.Join(checkKinds(s.only), checkLoad(s.load), checkScript(s.script))
}

// run makes rounds until the duration is used up, even after one that found violations.
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
			d = left // a shorter last round would prove too little
		}
		left -= d
		h, err := s.runRound(ctx, w, s.plan(rounds, d), program)
		errs = append(errs, err)
		if h != nil {
			all.add(h.summary())
			for _, name := range h.unfired() {
				unfired[name] = true
			}
		}
	}
	if rounds > 1 {
		fmt.Fprintf(w, "total of %d rounds with %v of faults:\n", rounds, s.duration)
		all.write(w)
	}
	for name := range unfired {
		if all.faults[name] == 0 {
			errs = append(errs, fmt.Errorf("the fault %s never happened", name))
		}
	}
	// A single round may have none: the effects of a storm may last into the quiet phase.
	if len(all.alone) == 0 && len(s.only) == 0 && s.load == "" && s.over == overLocker && s.duration >= everyKind {
		errs = append(errs, errors.New("no name was taken over without other faults"))
	}
	return errors.Join(errs...)
}

// perform runs the script of the command line.
func (s settings) perform(ctx context.Context, w io.Writer, program string) error {
	dir, err := os.MkdirTemp("", "locker-chaos-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	found, err := scripts[s.script].perform(ctx, w, program, dir)
	if err == nil && len(found) > 0 {
		err = fmt.Errorf("%d violations; to repeat: go run ./chaos -script %s", len(found), s.script)
	}
	return err
}

// plan returns the plan of round i.
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

// runRound makes a round and reports on it.
func (s settings) runRound(ctx context.Context, w io.Writer, p plan, program string) (*history, error) {
	fmt.Fprintf(w, "round with seed %d: %v of faults on %d member(s), over %s %s\n", p.seed, p.duration, p.members, s.over, s.load)
	dir, err := s.newDir()
	if err != nil {
		return nil, err
	}
	r := round{plan: p, over: s.over, unfenced: s.unfenced, program: program, dir: dir, names: s.names, workers: 6, hold: s.hold}
	switch {
	case s.load != "":
		r = r.underLoad(s.load)
	case s.over == overLocker:
		r.mixed = s.mixed
	}
	h, err := r.run(ctx)
	if err != nil {
		return nil, fmt.Errorf("round with seed %d: %w (see %s)", p.seed, err, dir)
	}
	violations := judge(h)
	missing := h.missing()
	report(w, h)
	if s.load != "" {
		reportSizes(w, h)
	}
	writeViolations(w, h, violations)
	for _, what := range missing {
		fmt.Fprintf(w, "  MISSING: %s\n", what)
	}
	if err := r.keep(w, len(violations)+len(missing) > 0 || s.dir != ""); err != nil {
		return h, err
	}
	if len(violations)+len(missing) > 0 {
		return h, fmt.Errorf("%d violations, %d requirements missed; to replay: %s", len(violations), len(missing), s.command(p))
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

// command returns the command that repeats a round.
func (s settings) command(p plan) string {
	c := fmt.Sprintf("go run ./chaos -seed %d -duration %v -round %v -members %d -ttl %v -names %d -mixed %d -rest %v -hold %v -over %s",
		p.seed, p.duration, p.duration, p.members, s.ttl, s.names, s.mixed, p.rest, s.hold, s.over)
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
