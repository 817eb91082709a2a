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

// scene is what faults act on: a cluster, and client processes behind proxies.
type scene struct {
	ttl     time.Duration
	cluster *etcdproc.Cluster
	members int
	quota   int64            // of etcd
	etcd    *clientv3.Client // bypasses the proxies
	witness *witness
	slots   []*clientSlot
	proxies []*embedtest.Proxy // by slot

	clusterFaults sync.Mutex // held during a fault of the cluster
	mu            sync.Mutex // guards firings
	firings       []firing
}

// firing is a fault that was injected.
type firing struct {
	fault
	span
	Err   string `json:",omitempty"`
	Name  string `json:",omitempty"` // of the entry that an operator removed
	Key   string `json:",omitempty"`
	Token int64  `json:",omitempty"`
	Lease int64  `json:",omitempty"`
	Led   bool   // the member was the leader when it was stopped
}

// perform injects the faults of a schedule, each at its time, and returns when all are over.
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
				f.Target = s.contested(ctx, f.Target)
			}
			lock := &s.clusterFaults
			if traitsOf(f.Kind).lane == toClients {
				lock = &s.slots[f.Target].faults
			}
			lock.Lock() // the previous fault may last longer than planned
			defer lock.Unlock()
			if ctx.Err() != nil {
				return
			}
			fired := firing{fault: f, span: span{From: now()}}
			if err := actions[f.Kind](s, ctx, &fired); err != nil && ctx.Err() == nil {
				fired.Err = err.Error()
			}
			fired.To = now()
			s.mu.Lock()
			defer s.mu.Unlock()
			s.firings = append(s.firings, fired)
		})
	}
}

// actions inject the faults, and undo them before they return, even if ctx has ended.
var actions = map[kind]func(*scene, context.Context, *firing) error{
	"kill":         (*scene).killClient,
	"stop-briefly": (*scene).stopClient,
	"stop":         (*scene).stopClient,
	"stop-half": func(s *scene, ctx context.Context, f *firing) error {
		return stopHalf(ctx, f.For, s.slots[f.Target].suspend, s.slots[f.Target].resume)
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
		return stopHalf(ctx, f.For, stop, s.cluster.Member(f.Target).Resume)
	},
	"move-leader": (*scene).moveLeader,
	"quorum-lost": (*scene).quorumLost,
	"no-space":    (*scene).noSpace,
}

func (f *firing) rnd() *rand.Rand { return rand.New(rand.NewPCG(f.Seed, 2)) }

// contested finds a process that holds a name for long while another waits for it, so that
// killing it causes a take-over. If there is none it returns otherwise.
func (s *scene) contested(ctx context.Context, otherwise int) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	resp, err := s.etcd.Get(ctx, lockPrefix+url.PathEscape("post/"), clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return otherwise
	}
	holders := make(map[string]string) // slot by name
	for _, kv := range resp.Kvs {
		name, _ := nameOf(string(kv.Key))
		waiter, _, _ := strings.Cut(string(kv.Value), ".")
		holder, held := holders[name]
		if !held {
			holders[name] = waiter
		} else if n, err := strconv.Atoi(holder); err == nil && holder != waiter && n < len(s.slots) && !s.isLong(n) {
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

// stopHalf stops and resumes something in short turns.
func stopHalf(ctx context.Context, d time.Duration, stop, resume func() error) (err error) {
	const interval = 100 * time.Millisecond
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil && err == nil; {
		err = stop()
		_ = pause(ctx, interval)
		err = errors.Join(err, resume())
		_ = pause(ctx, interval)
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

// delay slows the network down by a varying amount.
func (s *scene) delay(ctx context.Context, f *firing) error {
	defer s.proxies[f.Target].Heal()
	for rnd, end := f.rnd(), time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		s.proxies[f.Target].Delay(time.Duration(1 + rnd.Int64N(int64(200*time.Millisecond))))
		_ = pause(ctx, 100*time.Millisecond)
	}
	return nil
}

// throttle limits the bandwidth by a varying amount.
func (s *scene) throttle(ctx context.Context, f *firing) error {
	defer s.proxies[f.Target].Heal()
	for rnd, end := f.rnd(), time.Now().Add(f.For); time.Now().Before(end) && ctx.Err() == nil; {
		s.proxies[f.Target].Throttle(64<<10 + rnd.IntN(256<<10))
		_ = pause(ctx, 200*time.Millisecond)
	}
	return nil
}

// loseEvents holds all data back for a moment and then resets the connections: events of
// watches are lost, and clients that waited for them have to read again.
func (s *scene) loseEvents(ctx context.Context, f *firing) error {
	proxy := s.proxies[f.Target]
	defer proxy.Heal()
	proxy.Freeze()
	_ = pause(ctx, f.For)
	proxy.Reset()
	return nil
}

// lateAnswer stops a process after it has sent a renewal, and lets a slow network deliver
// the answer and nothing after it. A client that counts the TTL from the answer instead of
// the request then holds for too long. A slow network alone would not show that: a client
// without an answer asks again, so etcd has renewed the lease shortly before the first answer.
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

// pickEntry picks an entry for an operator to remove, of a holder or of a waiter.
func (s *scene) pickEntry(ctx context.Context, f *firing) (key string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		resp, err := s.etcd.Get(ctx, lockPrefix, clientv3.WithPrefix())
		if err == nil && len(resp.Kvs) > 0 {
			kv := resp.Kvs[f.rnd().IntN(len(resp.Kvs))]
			if name, isEntry := nameOf(string(kv.Key)); isEntry {
				f.Name, f.Key, f.Token, f.Lease = name, string(kv.Key), kv.CreateRevision, kv.Lease
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
	key, err := s.pickEntry(ctx, f)
	if err != nil {
		return err
	}
	return s.retry(ctx, func(ctx context.Context) error {
		_, err := s.etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", f.Token)).Then(clientv3.OpDelete(key)).Commit()
		return err
	})
}

func (s *scene) revokeLease(ctx context.Context, f *firing) error {
	if _, err := s.pickEntry(ctx, f); err != nil || f.Lease == 0 {
		return err
	}
	return s.retry(ctx, func(ctx context.Context) error {
		_, err := s.etcd.Revoke(ctx, clientv3.LeaseID(f.Lease))
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil // revoked by an earlier attempt, or expired
		}
		return err
	})
}

// foreignEntry puts an entry without a lease into a queue, as somebody might by hand: it
// blocks the queue until it is deleted. The put depends on a permit that is deleted
// together with the entry, so that an attempt without an answer cannot put it again later.
func (s *scene) foreignEntry(ctx context.Context, f *firing) error {
	t := s.slots[0].target
	f.Name = t.anyName(f.rnd().IntN(t.Names + t.Mixed))
	key, permit := queueOf(f.Name)+"foreign", rootPrefix+"permit"
	err := s.retry(ctx, func(ctx context.Context) error {
		resp, err := s.etcd.Put(ctx, permit, "")
		if err != nil {
			return err
		}
		permitted := clientv3.Compare(clientv3.ModRevision(permit), "=", resp.Header.Revision)
		_, err = s.etcd.Txn(ctx).If(permitted).Then(clientv3.OpPut(key, "foreign")).Commit()
		return err
	})
	_ = pause(ctx, f.For)
	return errors.Join(err, s.retry(context.Background(), func(ctx context.Context) error {
		_, err := s.etcd.Txn(ctx).Then(clientv3.OpDelete(permit), clientv3.OpDelete(key)).Commit()
		return err
	}))
}

// retry repeats an operation that other faults may cause to fail.
func (s *scene) retry(ctx context.Context, do func(context.Context) error) (err error) {
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

// recovery bounds what follows a fault, such as the restart of a member.
const recovery = 30 * time.Second
