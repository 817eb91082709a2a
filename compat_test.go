package locker_test

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/locktest"
)

// Tests of what Compat.Lock has kept of the original, and what all tests of Compat use.

// newCompat returns a Compat over client, closed with the test.
func newCompat(t testing.TB, client *locker.Client) *locker.Compat {
	c := client.Compat()
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// compatCall is a call of Compat.Lock or Compat.Watch, with its channels.
type compatCall[T any] struct {
	reported chan T // owned or valueChanges
	quit     chan bool
	result   <-chan error
}

// contend calls Lock in another goroutine, with a channel that buffers so many events.
func contend(c *locker.Compat, name, value string, events int) compatCall[bool] {
	owned, quit := make(chan bool, events), make(chan bool)
	return compatCall[bool]{owned, quit, locktest.Async(func() error { return c.Lock(name, value, owned, quit) })}
}

// follow calls Watch in another goroutine, with a channel that buffers so many events.
func follow(c *locker.Compat, name string, events int) compatCall[string] {
	changes, quit := make(chan string, events), make(chan bool)
	return compatCall[string]{changes, quit, locktest.Async(func() error { return c.Watch(name, changes, quit) })}
}

// reports fails the test unless these events come next.
func (k compatCall[T]) reports(t testing.TB, want ...T) {
	t.Helper()
	for i, w := range want {
		if got := locktest.Receive(t, k.reported); any(got) != any(w) {
			t.Fatalf("event %d is %v, want %v", i, got, w)
		}
	}
}

// silent fails the test if there is an event now, or the channel is closed.
func (k compatCall[T]) silent(t testing.TB) {
	t.Helper()
	select {
	case v, open := <-k.reported:
		t.Errorf("reported %v (open: %v)", v, open)
	default:
	}
}

// ends sends to quit, and fails the test unless the call returns nil and reports nothing more.
func (k compatCall[T]) ends(t testing.TB) {
	t.Helper()
	bySend(t, k.quit)
	k.ended(t)
}

// ended fails the test unless the call returns nil and has reported nothing more.
func (k compatCall[T]) ended(t testing.TB) {
	t.Helper()
	if err := locktest.Receive(t, k.result); err != nil {
		t.Error(err)
	}
	k.silent(t)
}

// The two ways to quit.
func bySend(t testing.TB, quit chan bool) {
	t.Helper()
	select {
	case quit <- true:
	case <-time.After(locktest.Timeout):
		t.Fatal("nothing receives from quit")
	}
}

func byClose(_ testing.TB, quit chan bool) { close(quit) }

func TestCompatLock_BlocksUntilQuit(t *testing.T) {
	t.Parallel()
	k := contend(newCompat(t, locktest.Setup(t).Client(t)), "a", "v", 0)
	k.reports(t, true)
	select {
	case err := <-k.result:
		t.Fatalf("returned %v", err)
	default:
	}
	k.ends(t)
}

func TestCompatLock_SendsTheOutcomeOfTheFirstAttempt(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	contend(c, "a", "v", 0).reports(t, true)
	contend(c, "a", "v", 0).reports(t, false)
	contend(newCompat(t, b.Client(t)), "a", "v", 0).reports(t, false)
}

func TestCompatLock_SendsTwoCompetingCallersWhatTheOriginalDid(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	first := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "1", 9)
	first.reports(t, true)
	second := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "2", 9)
	second.reports(t, false)
	b.Queued(t, "a", 2)
	outlast(t, b, locktest.Brief)
	second.silent(t)
	first.ends(t)
	second.reports(t, true)
	second.ends(t)
}

// expire ends the lease of the holder, remove deletes its entry.
func expire(t testing.TB, b locktest.Bundle, h locker.Holder) { b.Server.ExpireLease(t, h.Lease) }
func remove(t testing.TB, b locktest.Bundle, h locker.Holder) {
	t.Helper()
	for _, key := range b.Keys(t, locker.DefaultPrefix+h.Name+"/") {
		if _, err := b.Etcd.Delete(locktest.Within(t), key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCompatLock_SendsLossAndReacquisition(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(testing.TB, locktest.Bundle, locker.Holder){"lease expired": expire, "entry deleted": remove} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			observer := b.Client(t)
			for _, events := range []int{0, 9} {
				k := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "v", events)
				k.reports(t, true)
				for range 2 {
					lose(t, b, locktest.Get(t, observer, "a"))
					k.reports(t, false, true)
				}
				k.ends(t)
			}
		})
	}
}

func TestCompatLock_GoesOnContendingAfterFalse(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	present := locktest.Lock(t, b.Client(t), "a", "present")
	k := contend(newCompat(t, b.Client(t, locker.WithTTL(locktest.Brief))), "a", "v", 9)
	k.reports(t, false)
	for range 2 { // it loses its place in the queue, which is not reported
		b.Queued(t, "a", 2)
		keys := b.Keys(t, locker.DefaultPrefix+"a/")
		mine := slices.DeleteFunc(keys, func(key string) bool { return key == present.Key() })[0]
		if _, err := b.Etcd.Delete(locktest.Within(t), mine); err != nil {
			t.Fatal(err)
		}
		locktest.Eventually(t, "it queues again", func() bool {
			resp, err := b.Etcd.Get(locktest.Within(t), mine)
			return err == nil && len(resp.Kvs) == 1
		})
	}
	b.Queued(t, "a", 2)
	k.silent(t)
	locktest.Unlock(t, present)
	k.reports(t, true)
	k.ends(t)
}

func TestCompat_AcceptsNilForEveryChannel(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := b.Client(t, locker.WithTTL(locktest.Brief)).Compat()
	held := locktest.Async(func() error { return c.Lock("a", "v", nil, nil) })
	locktest.Eventually(t, "it is locked", func() bool { v, err := c.Get("a"); return v == "v" && err == nil })
	waiting := locktest.Async(func() error { return c.Lock("a", "w", nil, nil) })
	watching := locktest.Async(func() error { return c.Watch("a", nil, nil) })
	remove(t, b, locker.Holder{Name: "a"})
	locktest.Eventually(t, "it is locked again", func() bool { v, err := c.Get("a"); return v != "" && err == nil })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for _, result := range []<-chan error{held, waiting, watching} {
		locktest.Want(t, locktest.Receive(t, result), locker.ErrClosed)
	}
}

func TestCompat_NeverClosesAChannel(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	for _, end := range []func(k compatCall[bool], w compatCall[string]){
		func(k compatCall[bool], w compatCall[string]) { byClose(t, k.quit); byClose(t, w.quit) },
		func(compatCall[bool], compatCall[string]) { _ = c.Close() },
	} {
		k, w := contend(c, "a", "v", 9), follow(c, "b", 9)
		k.reports(t, true)
		w.reports(t, "")
		end(k, w)
		locktest.Receive(t, k.result)
		locktest.Receive(t, w.result)
		k.silent(t)
		w.silent(t)
	}
}

func TestCompatLock_QuitsByASendAndByAClose(t *testing.T) {
	t.Parallel()
	for way, quit := range map[string]func(testing.TB, chan bool){"send": bySend, "close": byClose} {
		t.Run("while holding, by "+way, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			k := contend(newCompat(t, b.Client(t)), "a", "v", 1)
			k.reports(t, true)
			quit(t, k.quit)
			k.ended(t)
			b.Queued(t, "a", 0)
		})
		t.Run("while waiting, by "+way, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			present, c := locktest.Lock(t, b.Client(t), "a", "present"), newCompat(t, b.Client(t))
			k := contend(c, "a", "v", 1)
			k.reports(t, false)
			b.Queued(t, "a", 2)
			behind := contend(c, "a", "v", 1)
			behind.reports(t, false)
			for _, k := range []compatCall[bool]{behind, k} {
				quit(t, k.quit)
				k.ended(t)
			}
			b.Queued(t, "a", 1)
			if present.Err() != nil {
				t.Error(present.Err())
			}
		})
		t.Run("while a send on owned is pending, by "+way, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c := newCompat(t, b.Client(t))
			k := contend(c, "a", "v", 0)
			locktest.Eventually(t, "it is locked", func() bool { _, err := c.Get("a"); return err == nil })
			behind := contend(c, "a", "v", 0)
			for _, k := range []compatCall[bool]{behind, k} {
				quit(t, k.quit)
				k.ended(t)
			}
			b.Queued(t, "a", 0)
		})
		t.Run("during the first attempt, by "+way, func(t *testing.T) {
			t.Parallel()
			b := locktest.Setup(t)
			c, w := wired(t, b)
			g := w.stop(t, false, func(req any) bool { return locktest.Enqueues(req, "a") })
			k := contend(newCompat(t, c), "a", "v", 1)
			locktest.Receive(t, g.arrived)
			quit(t, k.quit)
			k.ended(t)
			g.open()
			b.Queued(t, "a", 0)
		})
	}
}

func TestCompat_ACallThatIsToQuitBeforeItBeginsMakesNoRequest(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	c := newCompat(t, locktest.NewClient(t, etcd))
	closed := make(chan bool)
	close(closed)
	for range 200 { // so that its goroutines run in every order
		sent := make(chan bool, 2)
		sent <- true
		sent <- true
		for _, quit := range []chan bool{sent, closed} {
			owned, changes := make(chan bool, 1), make(chan string, 1)
			compatCall[bool]{owned, quit, locktest.Async(func() error { return c.Lock("a", "v", owned, quit) })}.ended(t)
			compatCall[string]{changes, quit, locktest.Async(func() error { return c.Watch("a", changes, quit) })}.ended(t)
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestCompat_UsesTheDirectoryAndTheTTLOfTheOriginal(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := locker.NewCompat(b.Server.Client(t))
	defer c.Close()
	contend(c, "a", "v", 0).reports(t, true)
	keys := b.Keys(t, "locker/a/")
	if len(keys) != 1 || path.Dir(keys[0]) != "locker/a" {
		t.Errorf("the keys are %v", keys)
	}
	lease, err := b.Etcd.TimeToLive(locktest.Within(t), locktest.Get(t, b.Client(t), "a").Lease)
	if err != nil || lease.GrantedTTL != 5 {
		t.Errorf("the lease is %+v, %v; want a TTL of 5 s", lease, err)
	}
}

func TestCompat_ReturnsOtherErrors(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	config := b.Server.ClientConfig()
	config.Username, config.Password = "guest", "guest"
	b.AddUser(t, "guest")
	b.Permit(t, "guest", clientv3.PermissionType(clientv3.PermReadWrite), "elsewhere/")
	c, guest := newCompat(t, b.Client(t)), newCompat(t, locktest.NewClient(t, locktest.Connect(t, config)))
	_, invalid := c.Get("")
	_, refused := guest.Get("a")
	for name, test := range map[string]struct{ err, is error }{
		"Lock of no name":           {c.Lock("", "v", nil, nil), locker.ErrInvalid},
		"Watch of no name":          {c.Watch("", nil, nil), locker.ErrInvalid},
		"Get of no name":            {invalid, locker.ErrInvalid},
		"Lock of too large a value": {c.Lock("a", strings.Repeat("v", 4<<20), nil, nil), nil},
		"Lock without permission":   {guest.Lock("a", "v", make(chan bool), nil), rpctypes.ErrPermissionDenied},
		"Watch without permission":  {guest.Watch("a", make(chan string), nil), rpctypes.ErrPermissionDenied},
		"Get without permission":    {refused, rpctypes.ErrPermissionDenied},
	} {
		t.Run(name, func(t *testing.T) {
			if test.err == nil || test.is != nil && !errors.Is(test.err, test.is) {
				t.Errorf("%v, want %v", test.err, test.is)
			}
			wantWrappedOnce(t, test.err)
		})
	}
}

func TestCompatLock_ReturnsAnErrorOfEtcdAlsoWhileItWaits(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t, embedtest.WithAuth())
	config := b.Server.ClientConfig()
	config.Username, config.Password = "member", "member"
	b.AddUser(t, "member")
	b.Permit(t, "member", clientv3.PermissionType(clientv3.PermReadWrite), "locker/")
	c := newCompat(t, locktest.NewClient(t, locktest.Connect(t, config), locker.WithTTL(locktest.Brief)))
	locktest.Lock(t, b.Client(t), "a", "present")
	k, behind := contend(c, "a", "v", 9), contend(c, "a", "w", 9)
	k.reports(t, false)
	behind.reports(t, false)
	b.Forbid(t, "member", "locker/")
	for _, k := range []compatCall[bool]{k, behind} {
		err := locktest.Receive(t, k.result)
		locktest.Want(t, err, rpctypes.ErrPermissionDenied)
		wantWrappedOnce(t, err)
		k.silent(t)
	}
	if text := fmt.Sprint(c.Lock("a", "v", nil, nil)); !strings.Contains(text, "permission denied") {
		t.Errorf("%s does not say why", text)
	}
}

// legacy is what a program for the original could call.
type legacy interface {
	Lock(name, value string, owned chan<- bool, quit <-chan bool) error
	Watch(name string, valueChanges chan<- string, quit <-chan bool) error
	Get(name string) (string, error)
}

// legacyProgram follows the original's README and uses nothing newer: a service
// that serves while it owns its name, watches the service it depends on, and
// releases its name when that service is gone. It reports what it does.
func legacyProgram(client legacy, name, dependency string, report func(...any)) error {
	value, err := client.Get(dependency)
	if notFound, ok := err.(locker.LockNotFound); ok {
		report(notFound.Error())
	} else if err != nil {
		return err
	}
	if value != "" {
		report(dependency, "is", value)
	}

	owned, changes := make(chan bool), make(chan string)
	quitLock, quitWatch := make(chan bool), make(chan bool)
	results := make(chan error, 2)
	go func() { results <- client.Lock(name, "ok", owned, quitLock) }()
	go func() { results <- client.Watch(dependency, changes, quitWatch) }()
	for seen := value != ""; ; {
		select {
		case own := <-owned:
			report("owns", name, own)
		case change := <-changes:
			if change == "" && seen {
				report(dependency, "is gone")
				quitLock <- true
				close(quitWatch)
				for range 2 {
					if err := <-results; err != nil {
						return err
					}
				}
				return nil
			}
			seen = seen || change != ""
		}
	}
}

func TestCompat_RunsAProgramWrittenForTheOriginal(t *testing.T) {
	t.Parallel()
	client := locker.NewCompat(embedtest.Start(t).Client(t)) // the only line that has changed
	t.Cleanup(func() { _ = client.Close() })

	b, reports := contend(client, "service-b", "ok", 0), make(chan string, 9)
	b.reports(t, true)
	w := follow(client, "service-a", 0)
	w.reports(t, "")
	result := locktest.Async(func() error {
		return legacyProgram(client, "service-a", "service-b", func(words ...any) { reports <- fmt.Sprintln(words...) })
	})
	w.reports(t, "ok")
	got := []string{locktest.Receive(t, reports), locktest.Receive(t, reports)}
	b.ends(t)
	if err := locktest.Receive(t, result); err != nil {
		t.Error(err)
	}
	w.reports(t, "")
	got = append(got, locktest.Receive(t, reports))
	if want := []string{"service-b is ok\n", "owns service-a true\n", "service-b is gone\n"}; !slices.Equal(got, want) {
		t.Errorf("the program reports %q, want %q", got, want)
	}
}

// Tests of what Compat.Watch and Compat.Get have kept of the original.

func TestCompatWatch_SendsTheFirstValueAtOnce(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	locktest.Lock(t, b.Client(t), "a", "v")
	follow(c, "a", 0).reports(t, "v")
	follow(c, "nobody", 0).reports(t, "")
}

func TestCompatWatch_SendsChangesOnly(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	holder := b.Client(t)
	w := follow(newCompat(t, b.Client(t)), "a", 9)
	w.reports(t, "")
	for _, value := range []string{"v", "w"} {
		l := locktest.Lock(t, holder, "a", value)
		w.reports(t, value)
		locktest.SetValue(t, l, value) // an event in etcd, but no change
		locktest.Unlock(t, l)
		w.reports(t, "")
	}
	locktest.Unlock(t, locktest.Lock(t, holder, "a", "")) // looks like nobody
	locktest.Lock(t, holder, "a", "x")
	w.reports(t, "x")
	w.ends(t)
}

func TestCompatWatch_QuitsByASendAndByAClose(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	for _, quit := range []func(testing.TB, chan bool){bySend, byClose} {
		read := follow(c, "a", 0)
		read.reports(t, "")
		unread := follow(c, "a", 0)
		for _, w := range []compatCall[string]{read, unread} {
			quit(t, w.quit)
			w.ended(t)
		}
	}
}

func TestCompatWatch_QuitsWhileEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	w := follow(newCompat(t, b.Client(t)), "a", 1)
	b.Server.Stop(t, 0)
	if len(w.reported) == 1 {
		w.reports(t, "")
	}
	unread := follow(newCompat(t, b.Client(t)), "a", 1)
	w.ends(t)
	unread.ends(t)
}

func TestCompatWatch_SendsALateReaderTheNewest(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, holder := newCompat(t, b.Client(t)), b.Client(t)
	w, brisk := follow(c, "a", 0), follow(c, "a", 9)
	brisk.reports(t, "")
	for _, value := range []string{"1", "2", "3"} {
		l := locktest.Lock(t, holder, "a", value)
		brisk.reports(t, value)
		if value != "3" {
			locktest.Unlock(t, l)
			brisk.reports(t, "")
		}
	}
	// An older value may come first, but the newest one follows.
	for value := ""; value != "3"; value = locktest.Receive(t, w.reported) {
	}
	w.ends(t)
}

func TestCompatWatch_ReturnsAnErrorWhenEtcdIsUnreachableForTheTTL(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Brief)
	w := follow(c, "a", 9)
	w.reports(t, "")
	proxy.Cut()
	if err := locktest.Receive(t, w.result); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Watch returned %v", err)
	}
	w.silent(t)
}

func TestCompatWatch_SurvivesAnOutageShorterThanTheTTL(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c, proxy := proxiedCompat(t, b, locktest.Unhurried)
	w := follow(c, "a", 9)
	w.reports(t, "")
	proxy.Cut()
	outlast(t, b, locktest.Brief)
	locktest.Lock(t, b.Client(t), "a", "v")
	w.silent(t)
	proxy.Heal()
	w.reports(t, "v")
	w.ends(t)
}

func TestCompatGet_ReturnsTheValueOrLockNotFound(t *testing.T) {
	t.Parallel()
	b := locktest.Setup(t)
	c := newCompat(t, b.Client(t))
	_, err := c.Get("a")
	if _, ok := err.(locker.LockNotFound); !ok {
		t.Errorf("%T is not a LockNotFound", err)
	}
	if err == nil || err.Error() != "Lock not found: a" {
		t.Errorf("the text is %q", err)
	}
	locktest.Want(t, err, locker.ErrNotFound)
	if errors.Is(err, locker.ErrLocked) {
		t.Error("it is also ErrLocked")
	}
	locktest.Lock(t, b.Client(t), "a", "v")
	if value, err := c.Get("a"); value != "v" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
}

func TestCompatGet_DoesNotReportAnUnreachableEtcdAsLockNotFound(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	c := newCompat(t, locktest.NewClient(t, server.Client(t), locker.WithTTL(locktest.Brief)))
	server.Stop(t, 0)
	_, err := c.Get("a")
	if err == nil || errors.Is(err, locker.ErrNotFound) {
		t.Errorf("%v, want an error of etcd", err)
	}
	wantWrappedOnce(t, err)
}

func TestCompat_LockDeniedHasItsOldText(t *testing.T) {
	t.Parallel()
	var err error = locker.LockDenied{}
	if err.Error() != "Lock attempt was denied: " {
		t.Errorf("the text is %q", err)
	}
	locktest.Want(t, err, locker.ErrLocked)
	if errors.Is(err, locker.ErrNotFound) {
		t.Error("it is also ErrNotFound")
	}
}
