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
	"github.com/jagregory/locker/v2/internal/livepage"
)

const nodeUsage = `Mesh node runs one service of a mesh. The service holds a record while it is healthy, and
releases it as soon as it is not. It logs the state of the services it needs.

	-name NAME               name of the service: letters, digits, ".", "_" and "-"
	-needs LIST              comma-separated names of the services it needs
	-cascade                 stop serving while something it needs is down
	-address ADDRESS         address in its record (that of -listen, or the host name)
	-check-command COMMAND   health check: a shell command that must exit with 0
	-check-url URL           health check: a URL that must return a status of 200 to 299
	-check-interval DURATION time between health checks (1s)
	-check-timeout DURATION  time after which a health check has failed (2s)
	-listen ADDRESS          address for HTTP: GET /health returns 200 while the service is
	                         serving and 503 while it is not, POST /unhealthy and
	                         POST /healthy set its health
	-settle DURATION         how long everything must be ready before it serves (1s)
	-ttl DURATION            how long its record remains after the process is killed (5s)
	-endpoints LIST          comma-separated addresses of an etcd cluster; by default, etcd
	                         runs inside this program, and others can join it
	-prefix PREFIX           prefix of the mesh in etcd ("mesh/")

Without a health check, the service is healthy until it is marked unhealthy.
` + signalHelp + `
Ctrl-C ends the program after releasing the record.
`

// nodeSettings are the values of the flags of mesh node.
type nodeSettings struct {
	name, address, listen, prefix  string
	endpoints, needs               []string
	command, url                   string
	cascade                        bool
	interval, timeout, settle, ttl time.Duration
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
	flags.DurationVar(&s.timeout, "check-timeout", 2*time.Second, "")
	flags.StringVar(&s.listen, "listen", "", "")
	flags.DurationVar(&s.settle, "settle", time.Second, "")
	flags.DurationVar(&s.ttl, "ttl", 5*time.Second, "")
	endpoints := flags.String("endpoints", "", "")
	flags.StringVar(&s.prefix, "prefix", "mesh/", "")
	if err := parse(flags, args, nodeUsage, out); err != nil {
		return s, err
	}
	s.needs = unique(splitList(*needs))
	if problem := s.problem(); problem != "" {
		return s, &usageError{problem, nodeUsage}
	}
	var err error
	s.endpoints, err = parseEndpoints(*endpoints, nodeUsage)
	return s, err
}

// problem describes what is wrong with the flags. It returns "" if they are valid.
func (s nodeSettings) problem() string {
	invalid := slices.IndexFunc(s.needs, func(need string) bool { return !validName.MatchString(need) })
	switch u, err := url.Parse(s.url); {
	case s.name == "":
		return "-name is required"
	case !validName.MatchString(s.name):
		return fmt.Sprintf("invalid -name %q: a name has 1 to 63 letters, digits, \".\", \"_\" and \"-\"", s.name)
	case invalid >= 0:
		return fmt.Sprintf("invalid -needs %q: a name has 1 to 63 letters, digits, \".\", \"_\" and \"-\"", s.needs[invalid])
	case len(s.needs) > maxNeeds:
		return fmt.Sprintf("-needs names %d services, but the maximum is %d", len(s.needs), maxNeeds)
	case slices.Contains(s.needs, s.name):
		return "-needs must not name the service itself"
	case s.command != "" && s.url != "":
		return "-check-command and -check-url cannot be used together"
	case s.url != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https"):
		return fmt.Sprintf("invalid -check-url %q: want a URL such as http://127.0.0.1:8080/health", s.url)
	case s.interval <= 0 || s.timeout <= 0:
		return "-check-interval and -check-timeout must be positive"
	case s.settle < 0:
		return "-settle must not be negative"
	}
	return ""
}

// check returns the health check that the flags specify.
func (s nodeSettings) check() check {
	switch {
	case s.command != "":
		return checkCommand(s.command)
	case s.url != "":
		return checkURL(s.url)
	}
	return alwaysHealthy
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
	conn, err := connect(ctx, etcd.endpoints, locker.WithPrefix(s.prefix), locker.WithTTL(s.ttl))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.close()) }()
	r := record{Address: cmp.Or(s.address, hostName()), Needs: s.needs, Cascade: s.cascade}
	n := newNode(conn.Client, s.name, r, s.settle, logger)
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return n.run(ctx) })
	tasks.Go(func() error { n.health.runChecks(ctx, s.check(), s.interval, s.timeout); return nil })
	tasks.Go(func() error { n.health.handleSignals(ctx); return nil })
	if control != nil {
		tasks.Go(func() error { return livepage.Serve(ctx, control, n.control()) })
		logger.Printf("listening on http://%s/", reachable(control.Addr(), "localhost"))
	}
	return tasks.Wait()
}

// hostName returns the address of a node for which none is given.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return name
}
