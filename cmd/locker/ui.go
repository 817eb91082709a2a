package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/cmd/locker/internal/ui"
)

// page is the command ui.
type page struct {
	program      *program
	listen       string
	allowRelease bool
	hosts        []string
}

func (p *program) ui() *cobra.Command {
	u := &page{program: p}
	cmd := &cobra.Command{
		Use:   "ui",
		Short: "Serve a page that shows who holds which lock, and who waits",
		Long: `Ui serves a page with one row for each name that is held, which changes while one looks at it: who
holds it, in which process, since when, how long its lease would live, and how many wait. A name
opens its queue. The page loads nothing from elsewhere, and can be read without scripts.

The same is at /state.json (?prefix= and ?name=), and /healthz answers 200 while etcd answers.

Everybody who reaches the address can read the page; with --allow-release, everybody can take
locks away from their holders. It listens on this machine alone unless --listen says otherwise.
A proxy in front of it, and every other name of this machine, has to be given with --host.`,
		Example: `  locker ui
  locker ui --listen 127.0.0.1:9000 --allow-release`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd.Context()) },
	}
	cmd.Flags().StringVar(&u.listen, "listen", "127.0.0.1:8090", "`address` of the page")
	cmd.Flags().BoolVar(&u.allowRelease, "allow-release", false, "let the page take locks away from their holders")
	cmd.Flags().StringSliceVar(&u.hosts, "host", nil, "`name` by which browsers may call the page, beside localhost, its addresses and the name of this machine")
	return cmd
}

// run serves the page until ctx ends.
func (u *page) run(ctx context.Context) error {
	l, err := net.Listen("tcp", u.listen)
	if err != nil {
		return usageError("cannot listen on %s: %v; give another address with --listen", u.listen, err)
	}
	defer l.Close()
	log := slog.New(slog.NewTextHandler(u.program.stderr, nil))
	client, etcd, stop, err := u.program.connection.open(ctx, locker.WithLogger(log))
	if err != nil {
		return err
	}
	defer stop()
	starting, cancel := context.WithTimeout(ctx, u.program.connection.dialTimeout)
	defer cancel()
	server, err := ui.New(starting, ui.Config{
		Client: client, Etcd: etcd, AllowRelease: u.allowRelease, Hosts: u.names(), Log: log,
		Where: strings.Join(u.program.connection.endpoints, ", ") + ", prefix " + u.program.connection.prefix,
	})
	if err != nil {
		return err
	}
	defer server.Close()
	if u.allowRelease && !isLoopback(l.Addr()) {
		log.Warn("everybody who reaches the page can take locks away from their holders", "listen", l.Addr().String())
	}
	fmt.Fprintf(u.program.stdout, "The page is at http://%s/\n", reachable(l.Addr()))
	return server.Serve(ctx, l)
}

// names returns the names by which browsers may call the page.
func (u *page) names() []string {
	names := []string{}
	for _, host := range u.hosts {
		names = append(names, strings.ToLower(host))
	}
	if host, _, err := net.SplitHostPort(u.listen); err == nil && host != "" {
		names = append(names, strings.ToLower(host))
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, strings.ToLower(host))
	}
	return names
}

func isLoopback(address net.Addr) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// reachable returns an address at which the page can be reached from this machine.
func reachable(address net.Addr) string {
	if tcp, ok := address.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return address.String()
}
