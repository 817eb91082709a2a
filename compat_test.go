package locker_test

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
)

// What Compat.Lock has kept of the original, and the parts that tests of Compat share.

// compat returns a Compat with a connection and a Client of its own, closed with the test.
func (b bundle) compat(t testing.TB, opts ...locker.Option) *locker.Compat {
	return newCompat(t, b.Client(t, opts...))
}

// newCompat returns a Compat over client, closed with the test.
func newCompat(t testing.TB, client *locker.Client) *locker.Compat {
	c := client.Compat()
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// calling makes a call that blocks in another goroutine.
func calling(call func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- call() }()
	return result
}

// call is a call of Compat.Lock or Compat.Watch with its channels.
type call[T any] struct {
	told   chan T // owned or valueChanges
	quit   chan bool
	result <-chan error
}

// contend locks name, with a channel for so many events.
func contend(c *locker.Compat, name, value string, events int) call[bool] {
	told, quit := make(chan bool, events), make(chan bool)
	return call[bool]{told, quit, calling(func() error { return c.Lock(name, value, told, quit) })}
}

// follow watches name, with a channel for so many events.
func follow(c *locker.Compat, name string, events int) call[string] {
	told, quit := make(chan string, events), make(chan bool)
	return call[string]{told, quit, calling(func() error { return c.Watch(name, told, quit) })}
}

// tells wants these events next.
func (k call[T]) tells(t testing.TB, want ...T) {
	t.Helper()
	for i, w := range want {
		if got := receive(t, k.told); any(got) != any(w) {
			t.Fatalf("event %d is %v, want %v", i, got, w)
		}
	}
}

// silent wants no event, now, and the channel to be open.
func (k call[T]) silent(t testing.TB) {
	t.Helper()
	select {
	case v, open := <-k.told:
		t.Errorf("told %v (open: %v)", v, open)
	default:
	}
}

// ends sends to quit and wants the call to return nil and to tell nothing more.
func (k call[T]) ends(t testing.TB) {
	t.Helper()
	bySend(t, k.quit)
	k.ended(t)
}

// ended wants the call to return nil and to have told nothing more.
func (k call[T]) ended(t testing.TB) {
	t.Helper()
	if err := receive(t, k.result); err != nil {
		t.Error(err)
	}
	k.silent(t)
}

// The two ways to quit.
func bySend(t testing.TB, quit chan bool) {
	t.Helper()
	select {
	case quit <- true:
	case <-time.After(patience):
		t.Fatal("nobody receives from quit")
	}
}

func byClose(_ testing.TB, quit chan bool) { close(quit) }

func TestCompatLock_BlocksUntilQuit(t *testing.T) {
	t.Parallel()
	k := contend(setup(t).compat(t), "a", "v", 0)
	k.tells(t, true)
	select {
	case err := <-k.result:
		t.Fatalf("returned %v", err)
	default:
	}
	k.ends(t)
}

func TestCompatLock_SendsTheOutcomeOfTheFirstAttempt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	contend(c, "a", "v", 0).tells(t, true)
	contend(c, "a", "v", 0).tells(t, false)
	contend(b.compat(t), "a", "v", 0).tells(t, false)
}

func TestCompatLock_SendsTwoCompetingCallersWhatTheOriginalDid(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := contend(b.compat(t, locker.WithTTL(brief)), "a", "1", 9)
	first.tells(t, true)
	second := contend(b.compat(t, locker.WithTTL(brief)), "a", "2", 9)
	second.tells(t, false)
	b.Queued(t, "a", 2)
	outlast(t, b, brief)
	second.silent(t)
	first.ends(t)
	second.tells(t, true)
	second.ends(t)
}

// expire ends the lease of the holder of name, remove removes its entry.
func expire(t testing.TB, b bundle, h locker.Holder) { b.Server.ExpireLease(t, h.Lease) }
func remove(t testing.TB, b bundle, h locker.Holder) {
	t.Helper()
	for _, key := range b.Keys(t, locker.DefaultPrefix+h.Name+"/") {
		if _, err := b.Etcd.Delete(within(t), key); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCompatLock_SendsLossAndReacquisition(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(testing.TB, bundle, locker.Holder){"lease expired": expire, "entry deleted": remove} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			observer := b.Client(t)
			for _, events := range []int{0, 9} {
				k := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", events)
				k.tells(t, true)
				for range 2 {
					lose(t, b, get(t, observer, "a"))
					k.tells(t, false, true)
				}
				k.ends(t)
			}
		})
	}
}

func TestCompatLock_GoesOnContendingAfterFalse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	present := lock(t, b.Client(t), "a", "present")
	k := contend(b.compat(t, locker.WithTTL(brief)), "a", "v", 9)
	k.tells(t, false)
	for range 2 { // its place in the queue is lost, which is no news
		b.Queued(t, "a", 2)
		keys := b.Keys(t, locker.DefaultPrefix+"a/")
		mine := slices.DeleteFunc(keys, func(key string) bool { return key == present.Key() })[0]
		if _, err := b.Etcd.Delete(within(t), mine); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it queues again", func() bool {
			resp, err := b.Etcd.Get(within(t), mine)
			return err == nil && len(resp.Kvs) == 1
		})
	}
	b.Queued(t, "a", 2)
	k.silent(t)
	unlock(t, present)
	k.tells(t, true)
	k.ends(t)
}

func TestCompat_AcceptsNilForEveryChannel(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.Client(t, locker.WithTTL(brief)).Compat()
	held := calling(func() error { return c.Lock("a", "v", nil, nil) })
	eventually(t, "it is locked", func() bool { v, err := c.Get("a"); return v == "v" && err == nil })
	waiting := calling(func() error { return c.Lock("a", "w", nil, nil) })
	watching := calling(func() error { return c.Watch("a", nil, nil) })
	remove(t, b, locker.Holder{Name: "a"})
	eventually(t, "it is locked again", func() bool { v, err := c.Get("a"); return v != "" && err == nil })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for _, result := range []<-chan error{held, waiting, watching} {
		want(t, receive(t, result), locker.ErrClosed)
	}
}

func TestCompat_NeverClosesAChannel(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	for _, end := range []func(k call[bool], w call[string]){
		func(k call[bool], w call[string]) { byClose(t, k.quit); byClose(t, w.quit) },
		func(call[bool], call[string]) { _ = c.Close() },
	} {
		k, w := contend(c, "a", "v", 9), follow(c, "b", 9)
		k.tells(t, true)
		w.tells(t, "")
		end(k, w)
		receive(t, k.result)
		receive(t, w.result)
		k.silent(t)
		w.silent(t)
	}
}

func TestCompatLock_QuitsByASendAndByAClose(t *testing.T) {
	t.Parallel()
	for way, quit := range map[string]func(testing.TB, chan bool){"send": bySend, "close": byClose} {
		t.Run("while holding, by "+way, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			k := contend(b.compat(t), "a", "v", 1)
			k.tells(t, true)
			quit(t, k.quit)
			k.ended(t)
			b.Queued(t, "a", 0)
		})
		t.Run("while waiting, by "+way, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			present, c := lock(t, b.Client(t), "a", "present"), b.compat(t)
			k := contend(c, "a", "v", 1)
			k.tells(t, false)
			b.Queued(t, "a", 2)
			behind := contend(c, "a", "v", 1)
			behind.tells(t, false)
			for _, k := range []call[bool]{behind, k} {
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
			b := setup(t)
			c := b.compat(t)
			k := contend(c, "a", "v", 0)
			eventually(t, "it is locked", func() bool { _, err := c.Get("a"); return err == nil })
			behind := contend(c, "a", "v", 0)
			for _, k := range []call[bool]{behind, k} {
				quit(t, k.quit)
				k.ended(t)
			}
			b.Queued(t, "a", 0)
		})
		t.Run("during the first attempt, by "+way, func(t *testing.T) {
			t.Parallel()
			b, begun, passed, once := setup(t), make(chan struct{}), make(chan struct{}), sync.Once{}
			etcd := b.Server.ClientWith(t, gate(func(string) {
				once.Do(func() { close(begun) })
				<-passed
			}))
			k := contend(newCompat(t, newClient(t, etcd)), "a", "v", 1)
			receive(t, begun)
			quit(t, k.quit)
			k.ended(t)
			close(passed)
			b.Queued(t, "a", 0)
		})
	}
}

func TestCompat_ACallThatIsToQuitBeforeItBeginsMakesNoRequest(t *testing.T) {
	t.Parallel()
	etcd, requests := countedEtcd(t, embedtest.Start(t))
	c := newCompat(t, newClient(t, etcd))
	closed := make(chan bool)
	close(closed)
	for range 200 { // to have every order of what goes on side by side
		sent := make(chan bool, 2)
		sent <- true
		sent <- true
		for _, quit := range []chan bool{sent, closed} {
			owned, changes := make(chan bool, 1), make(chan string, 1)
			call[bool]{owned, quit, calling(func() error { return c.Lock("a", "v", owned, quit) })}.ended(t)
			call[string]{changes, quit, calling(func() error { return c.Watch("a", changes, quit) })}.ended(t)
		}
	}
	if n := requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestCompat_UsesTheDirectoryAndTheTTLOfTheOriginal(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := locker.NewCompat(b.Server.Client(t))
	defer c.Close()
	contend(c, "a", "v", 0).tells(t, true)
	keys := b.Keys(t, "locker/a/")
	if len(keys) != 1 || path.Dir(keys[0]) != "locker/a" {
		t.Errorf("the keys are %v", keys)
	}
	lease, err := b.Etcd.TimeToLive(within(t), get(t, b.Client(t), "a").Lease)
	if err != nil || lease.GrantedTTL != 5 {
		t.Errorf("the lease is %+v, %v; want a TTL of 5 s", lease, err)
	}
}

func TestCompat_ReturnsOtherErrors(t *testing.T) {
	t.Parallel()
	b := setup(t, embedtest.WithAuth())
	config := b.Server.ClientConfig()
	config.Username = addUser(t, b, "guest", "elsewhere/")
	config.Password = config.Username
	c, guest := b.compat(t), newCompat(t, newClient(t, connect(t, config)))
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
	b := setup(t, embedtest.WithAuth())
	config := b.Server.ClientConfig()
	config.Username = addUser(t, b, "member", "locker/")
	config.Password = config.Username
	c := newCompat(t, newClient(t, connect(t, config), locker.WithTTL(brief)))
	lock(t, b.Client(t), "a", "present")
	k, behind := contend(c, "a", "v", 9), contend(c, "a", "w", 9)
	k.tells(t, false)
	behind.tells(t, false)
	if _, err := b.Etcd.RoleRevokePermission(within(t), "member", "locker/", clientv3.GetPrefixRangeEnd("locker/")); err != nil {
		t.Fatal(err)
	}
	for _, k := range []call[bool]{k, behind} {
		err := receive(t, k.result)
		want(t, err, rpctypes.ErrPermissionDenied)
		wantWrappedOnce(t, err)
		k.silent(t)
	}
	if text := fmt.Sprint(c.Lock("a", "v", nil, nil)); !strings.Contains(text, "permission denied") {
		t.Errorf("%s does not tell why", text)
	}
}

// legacy is all that a program on the original could call.
type legacy interface {
	Lock(name, value string, owned chan<- bool, quit <-chan bool) error
	Watch(name string, valueChanges chan<- string, quit <-chan bool) error
	Get(name string) (string, error)
}

// legacyProgram is written after the original's README, with nothing newer: a
// service that serves while it owns its name, follows the service it depends on,
// and gives up its name when that has gone. It reports what it does.
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
	client := locker.NewCompat(embedtest.Start(t).Client(t)) // the line that has changed
	t.Cleanup(func() { _ = client.Close() })

	b, reports := contend(client, "service-b", "ok", 0), make(chan string, 9)
	b.tells(t, true)
	w := follow(client, "service-a", 0)
	w.tells(t, "")
	result := calling(func() error {
		return legacyProgram(client, "service-a", "service-b", func(words ...any) { reports <- fmt.Sprintln(words...) })
	})
	w.tells(t, "ok")
	got := []string{receive(t, reports), receive(t, reports)}
	b.ends(t)
	if err := receive(t, result); err != nil {
		t.Error(err)
	}
	w.tells(t, "")
	got = append(got, receive(t, reports))
	if want := []string{"service-b is ok\n", "owns service-a true\n", "service-b is gone\n"}; !slices.Equal(got, want) {
		t.Errorf("the program reports %q, want %q", got, want)
	}
}

// What Compat.Watch and Compat.Get have kept of the original.

func TestCompatWatch_SendsTheFirstValueAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	lock(t, b.Client(t), "a", "v")
	follow(c, "a", 0).tells(t, "v")
	follow(c, "nobody", 0).tells(t, "")
}

func TestCompatWatch_SendsChangesOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	holder := b.Client(t)
	w := follow(b.compat(t), "a", 9)
	w.tells(t, "")
	for _, value := range []string{"v", "w"} {
		l := lock(t, holder, "a", value)
		w.tells(t, value)
		setValue(t, l, value) // an event of etcd, but no change
		unlock(t, l)
		w.tells(t, "")
	}
	unlock(t, lock(t, holder, "a", "")) // cannot be told from nobody
	lock(t, holder, "a", "x")
	w.tells(t, "x")
	w.ends(t)
}

func TestCompatWatch_QuitsByASendAndByAClose(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	for _, quit := range []func(testing.TB, chan bool){bySend, byClose} {
		read := follow(c, "a", 0)
		read.tells(t, "")
		unread := follow(c, "a", 0)
		for _, w := range []call[string]{read, unread} {
			quit(t, w.quit)
			w.ended(t)
		}
	}
}

func TestCompatWatch_QuitsWhileEtcdIsUnreachable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := follow(b.compat(t), "a", 1)
	b.Server.Stop(t, 0)
	if len(w.told) == 1 {
		w.tells(t, "")
	}
	unread := follow(b.compat(t), "a", 1)
	w.ends(t)
	unread.ends(t)
}

func TestCompatWatch_SendsALateReaderTheNewest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, holder := b.compat(t), b.Client(t)
	w, brisk := follow(c, "a", 0), follow(c, "a", 9)
	brisk.tells(t, "")
	for _, value := range []string{"1", "2", "3"} {
		l := lock(t, holder, "a", value)
		brisk.tells(t, value)
		if value != "3" {
			unlock(t, l)
			brisk.tells(t, "")
		}
	}
	// It may be about to hear of the newest, but does not stay behind.
	for value := ""; value != "3"; value = receive(t, w.told) {
	}
	w.ends(t)
}

func TestCompatWatch_ReturnsAnErrorWhenEtcdIsUnreachableForTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, brief)
	w := follow(c, "a", 9)
	w.tells(t, "")
	proxy.Cut()
	if err := receive(t, w.result); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Watch returned %v", err)
	}
	w.silent(t)
}

func TestCompatWatch_SurvivesAnOutageShorterThanTheTTL(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, proxy := b.cut(t, unhurried)
	w := follow(c, "a", 9)
	w.tells(t, "")
	proxy.Cut()
	outlast(t, b, brief)
	lock(t, b.Client(t), "a", "v")
	w.silent(t)
	proxy.Heal()
	w.tells(t, "v")
	w.ends(t)
}

func TestCompatGet_ReturnsTheValueOrLockNotFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.compat(t)
	_, err := c.Get("a")
	if _, ok := err.(locker.LockNotFound); !ok {
		t.Errorf("%T is not a LockNotFound", err)
	}
	if err == nil || err.Error() != "Lock not found: a" {
		t.Errorf("the text is %q", err)
	}
	want(t, err, locker.ErrNotFound)
	if errors.Is(err, locker.ErrLocked) {
		t.Error("it is ErrLocked as well")
	}
	lock(t, b.Client(t), "a", "v")
	if value, err := c.Get("a"); value != "v" || err != nil {
		t.Errorf("%q, %v", value, err)
	}
}

func TestCompatGet_DoesNotReportAnUnreachableEtcdAsLockNotFound(t *testing.T) {
	t.Parallel()
	server := embedtest.Start(t)
	c := newCompat(t, newClient(t, server.Client(t), locker.WithTTL(brief)))
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
	want(t, err, locker.ErrLocked)
	if errors.Is(err, locker.ErrNotFound) {
		t.Error("it is ErrNotFound as well")
	}
}
