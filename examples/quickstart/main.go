// Command quickstart demonstrates what Locker guarantees in a few seconds: two clients
// compete for one name, an observer watches it, and then the network fails.
//
//	go run ./examples/quickstart
//	go run ./examples/quickstart -endpoints 10.0.0.1:2379,10.0.0.2:2379
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

const usage = `Quickstart demonstrates what Locker guarantees in a few seconds: alpha and beta compete
for the name www.example.com, an observer watches it, and then the network fails.

	-endpoints LIST  comma-separated addresses of an etcd cluster;
	                 by default, etcd runs inside this program

The exit code is 0 if every guarantee held, 1 with a message if not, and 130 if the
program was interrupted. It leaves nothing behind in etcd.
`

func main() {
	flag.Usage = func() { fmt.Fprint(flag.CommandLine.Output(), usage) }
	list := flag.String("endpoints", "", "")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "quickstart: unknown argument %q\n\n%s", flag.Arg(0), usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program immediately
	err := run(ctx, os.Stdout, strings.FieldsFunc(*list, func(r rune) bool { return r == ',' || r == ' ' }))
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "quickstart: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run sets up the demonstration, runs it, and leaves nothing behind.
func run(ctx context.Context, out io.Writer, endpoints []string) error {
	began := time.Now()
	logf := func(who, format string, args ...any) {
		fmt.Fprintf(out, "%6.3fs  %-8s  %s\n", time.Since(began).Seconds(), who, fmt.Sprintf(format, args...))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d, err := newDemo(ctx, endpoints)
	if err != nil {
		return err
	}
	d.logf = logf
	if len(endpoints) == 0 {
		logf("etcd", "running inside this program (-endpoints selects a cluster of your own)")
	} else {
		logf("etcd", "using the cluster at %s", strings.Join(endpoints, ", "))
	}
	err = d.run(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err := errors.Join(err, d.close()); err != nil {
		return err
	}
	logf("etcd", "no key and no lease left; every guarantee held")
	return nil
}

const (
	name      = "www.example.com"
	alphaAddr = "192.0.2.1"
	betaAddr  = "192.0.2.2"
)

// run is the demonstration. It returns an error at the first guarantee that does not
// hold.
func (d *demo) run(ctx context.Context) error {
	// Watch yields the current state, then each newer one.
	states, stop := d.watch(ctx)
	defer stop()

	// 1. A lock is a name with a value, held by one client at a time.
	first, err := d.alpha.Lock(ctx, name, alphaAddr)
	if err != nil {
		return err
	}
	d.logf("alpha", "holds %s with value %s: token %d (1st hold)", name, alphaAddr, first.Token())
	holder, err := d.observer.Get(ctx, name)
	if err != nil {
		return err
	}
	d.logf("observer", "Get: %s is %s", holder.Name, holder.Value)
	if err := states.waitFor(alphaAddr); err != nil {
		return err
	}
	d.logf("beta", "waits for the lock, with value %s", betaAddr)
	wait := lockAsync(ctx, d.beta, betaAddr)
	if err := pause(ctx); err != nil {
		return err
	}

	// 2. Unlock hands the lock to the next waiter immediately.
	unlocked := time.Now()
	if err := first.Unlock(ctx); err != nil {
		return err
	}
	second, heldAt, err := wait()
	if err != nil {
		return err
	}
	d.logf("alpha", "unlocked")
	d.logf("beta", "holds the lock %v after alpha called Unlock: token %d (2nd hold)", ms(heldAt.Sub(unlocked)), second.Token())
	if err := states.waitFor(betaAddr); err != nil {
		return err
	}
	d.logf("alpha", "waits for the lock again")
	wait = lockAsync(ctx, d.alpha, alphaAddr)
	if err := pause(ctx); err != nil {
		return err
	}

	// 3. A holder that is disconnected learns of its loss before anyone else holds the
	// lock.
	d.network.Cut()
	d.logf("network", "beta is disconnected from etcd; its hold is guaranteed for another %v", ms(time.Until(second.Deadline())))
	select {
	case <-second.Context().Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	lostAt := time.Now()
	var lost *locker.LostError
	if !errors.As(second.Err(), &lost) {
		return fmt.Errorf("beta was disconnected, but did not lose the lock: %w", second.Err())
	}
	d.logf("beta", "learns that it has lost the lock (%v), and stops its work", lost.Reason)
	third, heldAt, err := wait()
	if err != nil {
		return err
	}
	if heldAt.Before(lostAt) {
		return fmt.Errorf("alpha held %s %v before beta learned of its loss", name, lostAt.Sub(heldAt))
	}
	d.logf("alpha", "holds the lock %v after beta learned of its loss: token %d (3rd hold)", ms(heldAt.Sub(lostAt)), third.Token())
	if err := states.waitFor(alphaAddr); err != nil {
		return err
	}

	// 4. Late writes of the former holder are refused.
	d.network.Heal()
	if holder, err = d.beta.Get(ctx, name); err != nil { // waits for the connection
		return err
	}
	d.logf("network", "beta is connected again, and reads %s as the value", holder.Value)
	write := clientv3.OpPut(d.prefix+"written by beta", "too late")
	if _, err := second.Commit(ctx, write); !errors.Is(err, locker.ErrLost) {
		return fmt.Errorf("beta's late write was not refused: Commit returned %v", err)
	}
	d.logf("beta", "its late Commit is refused: %v", locker.ErrLost)
	resp, err := d.betaEtcd.Txn(ctx).If(second.Guard()...).Then(write).Commit()
	if err != nil {
		return err
	}
	if resp.Succeeded {
		return errors.New("etcd accepted beta's late write")
	}
	d.logf("beta", "its late transaction is refused as well: etcd itself checks the guard")
	if first.Token() >= second.Token() || second.Token() >= third.Token() {
		return fmt.Errorf("the tokens do not grow: %d, %d, %d", first.Token(), second.Token(), third.Token())
	}
	d.logf("alpha", "its token is the largest: %d < %d < %d", first.Token(), second.Token(), third.Token())
	if err := third.Unlock(ctx); err != nil {
		return err
	}
	d.logf("alpha", "unlocked")
	return states.waitFor("")
}
