package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// stage is where a script plays: one member, whose data may be taken away or replaced, and clients in this
// process.
type stage struct {
	ttl     time.Duration
	dir     string
	cluster *etcdproc.Cluster
	proxy   *embedtest.Proxy // for those that are not to see everything
	etcd    *clientv3.Client // of the script itself
	began   instant
	leaving sync.WaitGroup

	mu    sync.Mutex // guards found
	found []violation
}

// newStage starts the member. The caller must call close.
func newStage(ctx context.Context, program, dir string, ttl time.Duration) (s *stage, err error) {
	log, err := os.Create(filepath.Join(dir, "etcd.log"))
	if err != nil {
		return nil, err
	}
	s = &stage{ttl: ttl, dir: dir, began: now()}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.cluster, err = etcdproc.Start(ctx, etcdproc.Options{
		Program: program, Members: 1, Dir: dir, Flags: []string{"--unsafe-no-fsync", "--log-level=error"}, Log: log,
	})
	if err != nil {
		return s, err
	}
	if s.proxy, err = embedtest.NewProxy(s.cluster.Endpoints()...); err != nil {
		return s, err
	}
	s.etcd, err = connect(s.cluster.Endpoints())
	return s, err
}

func (s *stage) close() {
	s.leaving.Wait()
	if s.etcd != nil {
		_ = s.etcd.Close()
	}
	if s.proxy != nil {
		_ = s.proxy.Close()
	}
	if s.cluster != nil {
		s.cluster.Close()
	}
}

// violated notes a promise that was broken.
func (s *stage) violated(promise, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = append(s.found, violation{Invariant: promise, At: now(), Text: fmt.Sprintf(format, args...)})
}

func (s *stage) data() string { return filepath.Join(s.dir, "m0") }

// backUp copies what etcd has.
func (s *stage) backUp(ctx context.Context) (backup string, err error) {
	backup = filepath.Join(s.dir, "backup")
	s.cluster.Member(0).Kill()
	err = errors.Join(os.RemoveAll(backup), os.CopyFS(backup, os.DirFS(s.data())))
	return backup, errors.Join(err, s.cluster.Member(0).Restart(ctx))
}

// comeBack lets etcd come back with a backup, or with nothing.
func (s *stage) comeBack(ctx context.Context, backup string) error {
	s.cluster.Member(0).Kill()
	err := errors.Join(os.RemoveAll(s.data()), os.Mkdir(s.data(), 0o700))
	if backup != "" {
		err = errors.Join(err, os.CopyFS(s.data(), os.DirFS(backup)))
	}
	return errors.Join(err, s.cluster.Member(0).Restart(ctx))
}

// revision reads the revision of the cluster.
func (s *stage) revision(ctx context.Context) (revision int64, err error) {
	err = s.insist(ctx, func(ctx context.Context) error {
		resp, err := s.etcd.Get(ctx, everything)
		if err == nil {
			revision = resp.Header.Revision
		}
		return err
	})
	return revision, err
}

// pass writes until the cluster has passed a revision.
func (s *stage) pass(ctx context.Context, revision int64) error {
	for at := int64(0); at <= revision; {
		err := s.insist(ctx, func(ctx context.Context) error {
			resp, err := s.etcd.Put(ctx, everything+"pass", "")
			if err == nil {
				at = resp.Header.Revision
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) insist(ctx context.Context, do func(context.Context) error) error {
	return (&scene{}).insist(ctx, do)
}

// actor is a client.
type actor struct {
	*locker.Client
	etcd *clientv3.Client
}

// enter brings a client onto the stage, straight to etcd or through the proxy.
func (s *stage) enter(endpoints []string) (actor, error) {
	etcd, err := connect(endpoints)
	if err != nil {
		return actor{}, err
	}
	c, err := locker.New(etcd, locker.WithPrefix(lockPrefix), locker.WithTTL(s.ttl))
	if err != nil {
		return actor{}, errors.Join(err, etcd.Close())
	}
	return actor{c, etcd}, nil
}

// exit lets a client go, and does not wait for it. One that vanishes leaves in etcd what it has there.
func (s *stage) exit(a actor, vanishes bool) {
	if vanishes {
		_ = a.etcd.Close()
	}
	s.leaving.Go(func() {
		_ = a.Close() // it may have vanished
		_ = a.etcd.Close()
	})
}

// in reports whether something comes true in that time.
func in(ctx context.Context, d time.Duration, true func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for !true() {
		if pause(ctx, 20*time.Millisecond) != nil {
			return true()
		}
	}
	return ctx.Err() == nil || true()
}

// observer shows who holds a name, in each way that there is.
type observer struct {
	actor
	cache *locker.Cache
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	states map[string]locker.State
	ended  []string // watches, with why
}

// observe opens an observer of a name. The caller must call end.
func (s *stage) observe(ctx context.Context, endpoints []string, name string) (*observer, error) {
	a, err := s.enter(endpoints)
	if err != nil {
		return nil, err
	}
	o := &observer{actor: a, states: make(map[string]locker.State)}
	if o.cache, err = a.NewCache(ctx, ""); err != nil {
		s.exit(a, false)
		return nil, err
	}
	var watching context.Context
	watching, o.stop = context.WithCancel(context.Background())
	for what, states := range map[string]func(func(locker.State, error) bool){
		"Watch":       a.Watch(watching, name),
		"WatchPrefix": a.WatchPrefix(watching, name),
	} {
		o.wg.Go(func() {
			for state, err := range states {
				o.mu.Lock()
				if err == nil {
					o.states[what] = state
				} else if watching.Err() == nil {
					o.ended = append(o.ended, fmt.Sprintf("%s ended: %v", what, err))
				}
				o.mu.Unlock()
			}
		})
	}
	return o, nil
}

func (o *observer) end(s *stage) {
	o.stop()
	o.wg.Wait()
	o.cache.Close()
	s.exit(o.actor, false)
}

// wrong returns what does not show that the name is held so; a zero Holder is nobody.
func (o *observer) wrong(name string, want locker.Holder) (all []string) {
	shown := make(map[string]locker.Holder)
	shown["Cache"], _ = o.cache.Get(name)
	o.mu.Lock()
	for what, state := range o.states {
		if shown[what] = state.Holder; !state.Held {
			shown[what] = locker.Holder{}
		}
	}
	all = append(all, o.ended...)
	o.mu.Unlock()
	for what, holder := range shown {
		if holder != want {
			all = append(all, fmt.Sprintf("%s shows %+v", what, holder))
		}
	}
	return all
}
