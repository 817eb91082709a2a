package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// scene is what faults act on.
type scene struct {
	ttl     time.Duration
	cluster *etcdproc.Cluster
	members int
	quota   int64            // of etcd
	etcd    *clientv3.Client // past the proxies
	witness *witness
	slots   []*slot
	proxies []*embedtest.Proxy // by slot

	clusterFaults sync.Mutex // held by the one that is going on
	mu            sync.Mutex // guards firings
	firings       []firing
}

// firing is a fault that has taken place.
type firing struct {
	fault
	span
	Err   string `json:",omitempty"`
	Name  string `json:",omitempty"` // what an operator took away
	Token int64  `json:",omitempty"`
	Lease int64  `json:",omitempty"`
	Led   bool   // a member that was stopped was the leader then
}

// perform lets the faults of a schedule happen, each at its time, and returns when all are over.
func (s *scene) perform(ctx context.Context, faults []fault) {
	began := time.Now()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, f := range faults {
		if pause(ctx, time.Until(began.Add(f.At))) != nil {
			return
		}
		wg.Go(func() {
			if f.Alone {
				f.Target = s.wanted(ctx, f.Target)
			}
			turn := &s.clusterFaults
			if characterOf(f.Kind).lane == toClients {
				turn = &s.slots[f.Target].faults
			}
			turn.Lock() // the one before may last longer than it was meant to
			defer turn.Unlock()
			if ctx.Err() != nil {
				return
			}
			happened := firing{fault: f, span: span{From: now()}}
			if err := actions[f.Kind](s, ctx, &happened); err != nil && ctx.Err() == nil {
				happened.Err = err.Error()
			}
			happened.To = now()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.firings = append(s.firings, happened)
		})
	}
}

// actions are what faults do. Each returns when all is as before, even if ctx ends.
var actions = map[kind]func(*scene, context.Context, *firing) error{
	"kill":         (*scene).killClient,
	"stop-briefly": (*scene).stopClient,
	"stop":         (*scene).stopClient,
	"stop-half": func(s *scene, ctx context.Context, f *firing) error {
		return half(ctx, f.For, s.slots[f.Target].suspend, s.slots[f.Target].resume)
	},
	"lose-events":           (*scene).loseEvents,
	"throttle":              (*scene).throttle,
	"dead-connections":      viaProxy(func(p *embedtest.Proxy, _ *rand.Rand) { p.FreezeConnections() }),
	"repeat-writes":         (*scene).repeatWrites,
	"cut":                   viaProxy(func(p *embedtest.Proxy, _ *rand.Rand) { p.Cut() }),
	"reset":                 viaProxy(func(p *embedtest.Proxy, _ *rand.Rand) { p.Reset() }),
	"freeze":                viaProxy(func(p *embedtest.Proxy, _ *rand.Rand) { p.Freeze() }),
	"drop-replies":          viaProxy(func(p *embedtest.Proxy, _ *rand.Rand) { p.DropReplies() }),
	"freeze-member-briefly": viaProxy(func(p *embedtest.Proxy, rnd *rand.Rand) { p.Freeze(rnd.IntN(len(p.Endpoints()))) }),
	"cut-member":            viaProxy(func(p *embedtest.Proxy, rnd *rand.Rand) { p.Cut(rnd.IntN(len(p.Endpoints()))) }),
	"freeze-member":         viaProxy(func(p *embedtest.Proxy, rnd *rand.Rand) { p.Freeze(rnd.IntN(len(p.Endpoints()))) }),
	"delay":                 (*scene).delay,
	"late-answer":           (*scene).lateAnswer,
	"delete-entry":          (*scene).deleteEntry,
	"revoke-lease":          (*scene).revokeLease,
	"foreign-entry":         (*scene).foreignEntry,

	"compact":         (*scene).compact,
	"restart":         (*scene).away,
	"away":            (*scene).away,
	"rolling-restart": (*scene).rollingRestart,
	"kill-leader":     atLeader((*scene).away),
	"stop-member":     (*scene).stopMember,
	"stop-leader":     atLeader((*scene).stopMember),
	"stop-member-half": func(s *scene, ctx context.Context, f *firing) error {
		stop := func() error { return s.suspend(ctx, f, f.Target) }
		return half(ctx, f.For, stop, s.cluster.Member(f.Target).Resume)
	},
	"move-leader": (*scene).moveLeader,
	"quorum-lost": (*scene).quorumLost,
	"no-space":    (*scene).noSpace,
}

func (f *firing) rnd() *rand.Rand { return rand.New(rand.NewPCG(f.Seed, 2)) }

// wanted finds a process that holds for long what another one waits for: when it is killed, a take-over
// is to be seen.
func (s *scene) wanted(ctx context.Context, otherwise int) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := s.etcd.Get(ctx, lockPrefix+url.PathEscape("post/"), clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return otherwise
	}
	holders := make(map[string]string) // slots, by name
	for _, kv := range resp.Kvs {
		name, _ := nameOf(string(kv.Key))
		slot, _, _ := strings.Cut(string(kv.Value), ".")
		holder, held := holders[name]
		if !held {
			holders[name] = slot
		} else if n, err := strconv.Atoi(holder); err == nil && holder != slot && n < len(s.slots) && !s.isLong(n) {
			return n
		}
	}
	return otherwise
}

// isLong reports whether the process in a slot has a long TTL.
func (s *scene) isLong(slot int) bool { return s.slots[slot].target.Lease == longTTL }

func (s *scene) killClient(ctx context.Context, f *firing) error {
	s.slots[f.Target].kill()
	_ = pause(ctx, f.For)
	return s.slots[f.Target].start()
}

func (s *scene) stopClient(ctx context.Context, f *firing) error {
	err := s.slots[f.Target].suspend()
	_ = pause(ctx, f.For)
	return errors.Join(err, s.slots[f.Target].resume())
}

// half stops and continues something in turn.
func half(ctx context.Context, d time.Duration, stop, resume func() error) (err error) {
	const turn = 100 * time.Millisecond
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil && err == nil; {
		err = stop()
		_ = pause(ctx, turn)
		err = errors.Join(err, resume())
		_ = pause(ctx, turn)
	}
	return err
}

func viaProxy(do func(*embedtest.Proxy, *rand.Rand)) func(*scene, context.Context, *firing) error {
	return func(s *scene, ctx context.Context, f *firing) error {
		do(s.proxies[f.Target], f.rnd())
		_ = pause(ctx, f.For)
		s.proxies[f.Target].Heal()
		return nil
	}
}

// delay is a slow network whose slowness changes.
func (s *scene) delay(ctx context.Context, f *firing) error {
	defer s.proxies[f.Target].Heal()
	for rnd, end := f.rnd(), time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		s.proxies[f.Target].Delay(time.Duration(1 + rnd.Int64N(int64(200*time.Millisecond))))
		_ = pause(ctx, 100*time.Millisecond)
	}
	return nil
}

// throttle is a narrow link whose width changes.
func (s *scene) throttle(ctx context.Context, f *firing) error {
	defer s.proxies[f.Target].Heal()
	for rnd, end := f.rnd(), time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		s.proxies[f.Target].Throttle(64<<10 + rnd.IntN(256<<10))
		_ = pause(ctx, 200*time.Millisecond)
	}
	return nil
}

// loseEvents keeps everything back for a moment and then breaks the connections: what watches should
// have told meanwhile is lost, and whoever waited for it has to look.
func (s *scene) loseEvents(ctx context.Context, f *firing) error {
	proxy := s.proxies[f.Target]
	defer proxy.Heal()
	proxy.Freeze()
	_ = pause(ctx, f.For)
	proxy.Reset()
	return nil
}

// lateAnswer lets a slow network still bring the answer to a renewal to a process that was stopped
// after it had asked, and nothing afterwards. Who counts the life of a lease from the answer instead of
// from the request holds too long then. A network that is slow and nothing else does not show that: who
// has no answer asks again, so that etcd hears of the lease until shortly before the first answer comes.
func (s *scene) lateAnswer(ctx context.Context, f *firing) error {
	proxy, client := s.proxies[f.Target], s.slots[f.Target]
	defer proxy.Heal()
	proxy.Delay(s.ttl / 20)
	_ = pause(ctx, s.ttl/8)
	err := client.suspend()
	_ = pause(ctx, s.ttl/8)
	proxy.Freeze()
	_ = pause(ctx, s.ttl/4)
	err = errors.Join(err, client.resume())
	_ = pause(ctx, f.For-s.ttl/2)
	return err
}

// anEntry finds an entry for an operator to take away, that of a holder or of a waiter.
func (s *scene) anEntry(ctx context.Context, f *firing) (key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		resp, err := s.etcd.Get(ctx, lockPrefix, clientv3.WithPrefix())
		if err == nil && len(resp.Kvs) > 0 {
			kv := resp.Kvs[f.rnd().IntN(len(resp.Kvs))]
			if name, isEntry := nameOf(string(kv.Key)); isEntry {
				f.Name, f.Token, f.Lease = name, kv.CreateRevision, kv.Lease
				return string(kv.Key), nil
			}
			f.Seed++
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return "", fmt.Errorf("find an entry: %w", err)
		}
	}
}

func (s *scene) deleteEntry(ctx context.Context, f *firing) error {
	key, err := s.anEntry(ctx, f)
	if err != nil {
		return err
	}
	return s.insist(ctx, func(ctx context.Context) error {
		_, err := s.etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", f.Token)).Then(clientv3.OpDelete(key)).Commit()
		return err
	})
}

func (s *scene) revokeLease(ctx context.Context, f *firing) error {
	if _, err := s.anEntry(ctx, f); err != nil || f.Lease == 0 {
		return err
	}
	return s.insist(ctx, func(ctx context.Context) error {
		_, err := s.etcd.Revoke(ctx, clientv3.LeaseID(f.Lease))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil // it is gone, by an earlier attempt or by itself
		}
		return err
	})
}

// foreignEntry puts an entry into a queue that has no lease, as somebody might by hand: it blocks like
// any other, and nothing but a hand removes it. It is put under a permit that is withdrawn with it, so that
// an attempt that etcd has not answered cannot put it again later.
func (s *scene) foreignEntry(ctx context.Context, f *firing) error {
	names := s.slots[0].target
	f.Name = names.name(f.rnd().IntN(names.Names))
	key, permit := lockPrefix+url.PathEscape(f.Name)+"/foreign", everything+"permit"
	err := s.insist(ctx, func(ctx context.Context) error {
		given, err := s.etcd.Put(ctx, permit, "")
		if err != nil {
			return err
		}
		still := clientv3.Compare(clientv3.ModRevision(permit), "=", given.Header.Revision)
		_, err = s.etcd.Txn(ctx).If(still).Then(clientv3.OpPut(key, "foreign")).Commit()
		return err
	})
	_ = pause(ctx, f.For)
	return errors.Join(err, s.insist(context.Background(), func(ctx context.Context) error {
		_, err := s.etcd.Txn(ctx).Then(clientv3.OpDelete(permit), clientv3.OpDelete(key)).Commit()
		return err
	}))
}

// insist repeats what other faults may keep from succeeding.
func (s *scene) insist(ctx context.Context, do func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	for {
		once, cancel := context.WithTimeout(ctx, time.Second)
		err = do(once)
		cancel()
		if err == nil || pause(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

// recovery is how long the end of a fault may take.
const recovery = 30 * time.Second
