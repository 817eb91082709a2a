package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
)

// serve answers queries until ctx ends.
func serve(ctx context.Context, s settings, _ []string, stdout, stderr io.Writer) (err error) {
	log := newLog(stderr)
	c, err := connect(ctx, s, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	server, err := newDNSServer(ctx, c.client, s, log)
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, c.where())
	fmt.Fprintf(stdout, "serving %s on %s (UDP and TCP); try\n\t%s\n", lockName(s.zone), server.address(), digLine(server.address(), "www."+lockName(s.zone)))
	return ignoreInterrupt(ctx, server.run(ctx))
}

// digLine returns the dig command that queries the server for a name.
func digLine(address, name string) string {
	host, port, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		host = "localhost"
	}
	return fmt.Sprintf("dig @%s -p %s %s", host, port, name)
}
