// Command quickstart shows in a few seconds what Locker promises: two clients want
// one name, an observer looks on, and then the network breaks.
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

const usage = `Quickstart shows in a few seconds what Locker promises: alpha and beta both want
to be www.example.com, an observer looks on, and then the network breaks.

	-endpoints LIST  addresses of an etcd cluster, separated by commas;
	                 without it an etcd is started inside this program

It ends with 0 if all was as promised, with 1 and a sentence if not, and with 130
if it was interrupted. It leaves nothing behind in etcd.
`

func main() {
	flag.Usage = func() { fmt.Fprint(flag.CommandLine.Output(), usage) }
	list := flag.String("endpoints", "", "")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "quickstart: what is %q?\n\n%s", flag.Arg(0), usage)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // another Ctrl-C ends it at once
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

// run tells the story on the stage that setUp builds, and leaves nothing behind.
func run(ctx context.Context, out io.Writer, endpoints []string) error {
	began := time.Now()
	say := func(who, format string, args ...any) {
		fmt.Fprintf(out, "%6.3fs  %-8s  %s\n", time.Since(began).Seconds(), who, fmt.Sprintf(format, args...))
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	s, err := setUp(ctx, endpoints)
	if err != nil {
		return err
	}
	s.say = say
	if len(endpoints) == 0 {
		say("etcd", "runs inside this program (-endpoints takes a real one)")
	} else {
		say("etcd", "is that at %s", strings.Join(endpoints, ", "))
	}
	err = s.tell(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err := errors.Join(err, s.tearDown()); err != nil {
		return err
	}
	say("etcd", "has no key and no lease of all this left: all was as promised")
	return nil
}

const (
	name      = "www.example.com"
	alphaAddr = "192.0.2.1"
	betaAddr  = "192.0.2.2"
)

// tell is the story. It returns an error at the first promise that is not kept.
func (s *stage) tell(ctx context.Context) error {
	// Watch yields the state now, then each newer one.
	states, done := s.watch(ctx)
	defer done()

	// Act 1: a lock is a name with a value, held by one client at a time.
	first, err := s.alpha.Lock(ctx, name, alphaAddr)
	if err != nil {
		return err
	}
	s.say("alpha", "holds %s with %s: token %d, the 1st hold", name, alphaAddr, first.Token())
	holder, err := s.observer.Get(ctx, name)
	if err != nil {
		return err
	}
	s.say("observer", "Get: %s is %s", holder.Name, holder.Value)
	if err := states.expect(alphaAddr); err != nil {
		return err
	}
	s.say("beta", "wants it too, with %s, and waits", betaAddr)
	turn := lockLater(ctx, s.beta, betaAddr)
	if err := pause(ctx); err != nil {
		return err
	}

	// Act 2: a clean Unlock hands over at once.
	unlocked := time.Now()
	if err := first.Unlock(ctx); err != nil {
		return err
	}
	second, heldAt, err := turn()
	if err != nil {
		return err
	}
	s.say("alpha", "has unlocked")
	s.say("beta", "holds it %v after alpha began to unlock: token %d, the 2nd hold", ms(heldAt.Sub(unlocked)), second.Token())
	if err := states.expect(betaAddr); err != nil {
		return err
	}
	s.say("alpha", "waits again")
	turn = lockLater(ctx, s.alpha, alphaAddr)
	if err := pause(ctx); err != nil {
		return err
	}

	// Act 3: a holder that is cut off knows it has lost before another one holds.
	s.network.Cut()
	s.say("network", "beta is cut off from etcd; it is certain of its hold for another %v", ms(time.Until(second.Deadline())))
	select {
	case <-second.Context().Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	lostAt := time.Now()
	var lost *locker.LostError
	if !errors.As(second.Err(), &lost) {
		return fmt.Errorf("beta was cut off, but did not lose the lock: %w", second.Err())
	}
	s.say("beta", "knows that it has lost the lock (%v) and stops its work", lost.Reason)
	third, heldAt, err := turn()
	if err != nil {
		return err
	}
	if heldAt.Before(lostAt) {
		return fmt.Errorf("alpha held %s %v before beta knew that it had lost it", name, lostAt.Sub(heldAt))
	}
	s.say("alpha", "holds it, %v after beta knew: token %d, the 3rd hold", ms(heldAt.Sub(lostAt)), third.Token())
	if err := states.expect(alphaAddr); err != nil {
		return err
	}

	// Act 4: what the late holder still tries to write is refused.
	s.network.Heal()
	if holder, err = s.beta.Get(ctx, name); err != nil { // waits for the connection
		return err
	}
	s.say("network", "beta is back, and sees that it is %s now", holder.Value)
	write := clientv3.OpPut(s.prefix+"written by beta", "too late")
	if _, err := second.Commit(ctx, write); !errors.Is(err, locker.ErrLost) {
		return fmt.Errorf("beta's late write was not refused, but gave %v", err)
	}
	s.say("beta", "its late Commit is refused: %v", locker.ErrLost)
	resp, err := s.betaEtcd.Txn(ctx).If(second.Guard()...).Then(write).Commit()
	if err != nil {
		return err
	}
	if resp.Succeeded {
		return errors.New("etcd accepted beta's late write")
	}
	s.say("beta", "and past Locker as well: etcd itself checks the guard")
	if first.Token() >= second.Token() || second.Token() >= third.Token() {
		return fmt.Errorf("the tokens do not grow: %d, %d, %d", first.Token(), second.Token(), third.Token())
	}
	s.say("alpha", "its token is the largest: %d < %d < %d", first.Token(), second.Token(), third.Token())
	if err := third.Unlock(ctx); err != nil {
		return err
	}
	s.say("alpha", "has unlocked")
	return states.expect("")
}
