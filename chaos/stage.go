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
	"google.golang.org/grpc"

	"github.com/jagregory/locker/v2"
	"github.com/jagregory/locker/v2/embedtest"
	"github.com/jagregory/locker/v2/internal/etcdproc"
)

// stage is what a script runs on: a cluster of one member, whose data may be removed or
// replaced, and clients in this process.
type stage struct {
	ttl     time.Duration
	dir     string
	cluster *etcdproc.Cluster
	proxy   *embedtest.Proxy // for clients that are to be cut off
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

// violated records a violation of an invariant.
func (s *stage) violated(name, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = append(s.found, violation{Invariant: name, At: now(), Text: fmt.Sprintf(format, args...)})
}

func (s *stage) data() string { return filepath.Join(s.dir, "m0") }

// backUp stops the member, copies its data, and restarts it.
func (s *stage) backUp(ctx context.Context) (backup string, err error) {
	backup = filepath.Join(s.dir, "backup")
	s.cluster.Member(0).Kill()
	err = errors.Join(os.RemoveAll(backup), os.CopyFS(backup, os.DirFS(s.data())))
	return backup, errors.Join(err, s.cluster.Member(0).Restart(ctx))
}

// restartWith restarts the member with the data of a backup, or with no data if it is empty.
func (s *stage) restartWith(ctx context.Context, backup string) error {
	s.cluster.Member(0).Kill()
	err := errors.Join(os.RemoveAll(s.data()), os.Mkdir(s.data(), 0o700))
	if backup != "" {
		err = errors.Join(err, os.CopyFS(s.data(), os.DirFS(backup)))
	}
	return errors.Join(err, s.cluster.Member(0).Restart(ctx))
}

// revision returns the revision of the cluster.
func (s *stage) revision(ctx context.Context) (revision int64, err error) {
	err = s.retry(ctx, func(ctx context.Context) error {
		resp, err := s.etcd.Get(ctx, rootPrefix)
		if err == nil {
			revision = resp.Header.Revision
		}
		return err
	})
	return revision, err
}

// advancePast writes until the cluster is past a revision.
func (s *stage) advancePast(ctx context.Context, revision int64) error {
	for at := int64(0); at <= revision; {
		err := s.retry(ctx, func(ctx context.Context) error {
			resp, err := s.etcd.Put(ctx, rootPrefix+"pass", "")
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

func (s *stage) retry(ctx context.Context, do func(context.Context) error) error {
	return (&scene{}).retry(ctx, do)
}

// scriptClient is a client of Locker with its own connection.
type scriptClient struct {
	*locker.Client
	etcd *clientv3.Client
}

// openClient opens a client of the endpoints, which are those of etcd or of the proxy.
func (s *stage) openClient(endpoints []string, options ...grpc.DialOption) (scriptClient, error) {
	etcd, err := connect(endpoints, options...)
	if err != nil {
		return scriptClient{}, err
	}
	c, err := locker.New(etcd, locker.WithPrefix(lockPrefix), locker.WithTTL(s.ttl))
	if err != nil {
		return scriptClient{}, errors.Join(err, etcd.Close())
	}
	return scriptClient{c, etcd}, nil
}

// closeClient closes a client in the background. One that vanishes leaves its entries in etcd.
func (s *stage) closeClient(a scriptClient, vanishes bool) {
	if vanishes {
		_ = a.etcd.Close()
	}
	s.leaving.Go(func() {
		_ = a.Close() // it may have vanished
		_ = a.etcd.Close()
	})
}

// eventually reports whether a condition becomes true within d.
func eventually(ctx context.Context, d time.Duration, cond func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for !cond() {
		if pause(ctx, 20*time.Millisecond) != nil {
			return cond()
		}
	}
	return ctx.Err() == nil || cond()
}

// observer observes a name with Watch, WatchPrefix and a Cache.
type observer struct {
	scriptClient
	cache *locker.Cache
	stop  context.CancelFunc
	wg    sync.WaitGroup

	mu     sync.Mutex              // guards what follows
	states map[string]locker.State // by kind of watch
	ended  []string                // watches that ended, and why
}

// observe opens an observer of a name. The caller must call end.
func (s *stage) observe(ctx context.Context, endpoints []string, name string) (*observer, error) {
	a, err := s.openClient(endpoints)
	if err != nil {
		return nil, err
	}
	o := &observer{scriptClient: a, states: make(map[string]locker.State)}
	if o.cache, err = a.NewCache(ctx, ""); err != nil {
		s.closeClient(a, false)
		return nil, err
	}
	var watching context.Context
	watching, o.stop = context.WithCancel(context.Background())
	for what, states := range map[string]func(func(locker.State, error) bool){
		"Watch":       a.Watch(watching, name),
		"WatchPrefix": a.WatchPrefix(watching, name),
	} {
		o.wg.Go(func() {
			for s, err := range states {
				o.mu.Lock()
				if err == nil {
					o.states[what] = s
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
	s.closeClient(o.scriptClient, false)
}

// wrong returns what shows another holder than want, which is zero if the name is free.
func (o *observer) wrong(name string, want locker.Holder) (all []string) {
	shown := make(map[string]locker.Holder)
	shown["Cache"], _ = o.cache.Get(name)
	o.mu.Lock()
	for what, s := range o.states {
		if shown[what] = s.Holder; !s.Held {
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
