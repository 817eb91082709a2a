package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/url"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jagregory/locker/v2"
)

const nodeUsage = `Mesh node runs one service of a mesh. While it is healthy it holds a record of its own,
which it gives up at once when it is not. It says what becomes of the services it needs.

	-name NAME               of the service: letters, digits, ".", "_" and "-"
	-needs LIST              the services it needs, separated by commas
	-cascade                 count it unhealthy while something it needs is down
	-address ADDRESS         what its record says; that of -listen unless given
	-check-command COMMAND   of the shell; the service is well if it ends with 0
	-check-url URL           the service is well if the status is 200 to 299
	-check-interval DURATION (1s)
	-check-timeout DURATION  after which a check has failed (2s)
	-listen ADDRESS          an HTTP port: GET /health is 200 while it serves and 503 while
	                         it does not, POST /unhealthy and POST /healthy switch it
	-settle DURATION         how long all has to be well before it serves (1s)
	-ttl DURATION            how long its record outlives a process that is killed (5s)
	-endpoints LIST          addresses of an etcd cluster, separated by commas; without it
	                         an etcd is started inside this program, for others to join
	-prefix PREFIX           of the mesh in etcd ("mesh/")

Without a check it is well until it is told otherwise. ` + signalHelp + `
Ctrl-C ends it, after it has given up its record.
`

// nodeSettings are the flags of mesh node.
type nodeSettings struct {
	name, address, listen, prefix string
	endpoints, needs              []string
	command, url                  string
	cascade                       bool
	interval, limit, settle, ttl  time.Duration
}

func parseNode(args []string, out io.Writer) (nodeSettings, error) {
	var s nodeSettings
	flags := flag.NewFlagSet("mesh node", flag.ContinueOnError)
	flags.StringVar(&s.name, "name", "", "")
	needs := flags.String("needs", "", "")
	flags.BoolVar(&s.cascade, "cascade", false, "")
	flags.StringVar(&s.address, "address", "", "")
	flags.StringVar(&s.command, "check-command", "", "")
	flags.StringVar(&s.url, "check-url", "", "")
	flags.DurationVar(&s.interval, "check-interval", time.Second, "")
	flags.DurationVar(&s.limit, "check-timeout", 2*time.Second, "")
	flags.StringVar(&s.listen, "listen", "", "")
	flags.DurationVar(&s.settle, "settle", time.Second, "")
	flags.DurationVar(&s.ttl, "ttl", 5*time.Second, "")
	endpoints := flags.String("endpoints", "", "")
	flags.StringVar(&s.prefix, "prefix", "mesh/", "")
	if err := parse(flags, args, nodeUsage, out); err != nil {
		return s, err
	}
	s.needs = distinct(list(*needs))
	if problem := s.problem(); problem != "" {
		return s, &usageError{problem, nodeUsage}
	}
	var err error
	s.endpoints, err = parseEndpoints(*endpoints, nodeUsage)
	return s, err
}

// problem says what is wrong with the flags, nothing if they are right.
func (s nodeSettings) problem() string {
	invalid := slices.IndexFunc(s.needs, func(need string) bool { return !validName.MatchString(need) })
	switch u, err := url.Parse(s.url); {
	case s.name == "":
		return "-name is missing: what is the service called?"
	case !validName.MatchString(s.name):
		return fmt.Sprintf("-name %q cannot be used: a name has 1 to 63 letters, digits, \".\", \"_\" and \"-\"", s.name)
	case invalid >= 0:
		return fmt.Sprintf("-needs %q cannot be used: a name has 1 to 63 letters, digits, \".\", \"_\" and \"-\"", s.needs[invalid])
	case len(s.needs) > mostNeeds:
		return fmt.Sprintf("-needs names %d services, and %d are the most", len(s.needs), mostNeeds)
	case slices.Contains(s.needs, s.name):
		return "-needs names the service itself, which would be no help"
	case s.command != "" && s.url != "":
		return "-check-command and -check-url: one of them is enough"
	case s.url != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https"):
		return fmt.Sprintf("-check-url %q is not an address such as http://127.0.0.1:8080/health", s.url)
	case s.interval <= 0 || s.limit <= 0:
		return "-check-interval and -check-timeout must be more than 0"
	case s.settle < 0:
		return "-settle must not be less than 0"
	}
	return ""
}

// check returns the check that the flags ask for.
func (s nodeSettings) check() check {
	switch {
	case s.command != "":
		return checkCommand(s.command)
	case s.url != "":
		return checkURL(s.url)
	}
	return alwaysWell
}

func runNode(ctx context.Context, args []string, out io.Writer) (err error) {
	s, err := parseNode(args, out)
	if err != nil {
		return err
	}
	logger := log.New(out, s.name+": ", log.Ltime|log.Lmicroseconds|log.Lmsgprefix)
	var control net.Listener
	if s.listen != "" {
		if control, err = listen(s.listen); err != nil {
			return err
		}
		defer control.Close()
		s.address = cmp.Or(s.address, reachable(control.Addr(), hostName()))
	}
	etcd, err := openCluster(s.endpoints, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.close()) }()
	m, err := join(ctx, etcd.endpoints, locker.WithPrefix(s.prefix), locker.WithTTL(s.ttl))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	r := record{Address: cmp.Or(s.address, hostName()), Needs: s.needs, Cascade: s.cascade}
	n := newNode(m.Client, s.name, r, s.settle, logger)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return n.run(ctx) })
	tasks.Go(func() error { n.health.watch(ctx, s.check(), s.interval, s.limit); return nil })
	tasks.Go(func() error { n.health.obey(ctx); return nil })
	if control != nil {
		tasks.Go(func() error { return serveHTTP(ctx, control, n.control()) })
		logger.Printf("listens at http://%s/", reachable(control.Addr(), "localhost"))
	}
	return tasks.Wait()
}

// hostName is the address of a node that has been given none.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
