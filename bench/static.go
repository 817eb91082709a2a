package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/jagregory/locker/v2"
)

const (
	nanoseconds figure = "nanoseconds" // per operation
	allocations figure = "allocations" // per operation
	modules     figure = "modules"     // linked in addition to those of etcd's client
	servers     figure = "servers"     // linked packages of etcd's server
)

const cached = 1000 // names in the cache

// benchmark runs a benchmark of the testing package for the period of a round.
func benchmark(ctx context.Context, a *arena, fn func(b *testing.B)) (figures, error) {
	testing.Init()
	if err := flag.Set("test.benchtime", a.workload.period.String()); err != nil {
		return nil, err
	}
	r := testing.Benchmark(fn)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if r.N == 0 {
		return nil, fmt.Errorf("the benchmark failed")
	}
	return figures{nanoseconds: float64(r.T.Nanoseconds()) / float64(r.N), allocations: float64(r.AllocsPerOp())}, nil
}

// cacheGet reads the holder of a name from a Cache.
var cacheGet = side{name: ours, open: func(ctx context.Context, a *arena) (round, error) {
	c, reader, err := lockerPair(a)
	if err != nil {
		return nil, err
	}
	names := a.names("n", cached)
	err = each(ctx, len(names), 100, func(ctx context.Context, i int) error {
		_, err := c.Lock(ctx, names[i], "")
		return err
	})
	if err != nil {
		return nil, err
	}
	cache, err := reader.NewCache(ctx, a.id)
	if err != nil {
		return nil, err
	}
	a.onClose(func() error { cache.Close(); return nil })
	return func(ctx context.Context) (figures, error) {
		return benchmark(ctx, a, func(b *testing.B) {
			i := 0
			for b.Loop() {
				if _, ok := cache.Get(names[i%cached]); !ok {
					b.Fatal("not in the cache")
				}
				i++
			}
		})
	}, nil
}}

// mapGet reads the holder from a map that a mutex guards.
var mapGet = side{name: "map", open: func(ctx context.Context, a *arena) (round, error) {
	names := a.names("n", cached)
	var mu sync.RWMutex
	holders := make(map[string]locker.Holder)
	for _, name := range names {
		key := strings.Clone(name) // as in a Cache: to compare equal pointers would be faster
		holders[key] = locker.Holder{Name: key}
	}
	get := func(name string) (locker.Holder, bool) {
		mu.RLock()
		defer mu.RUnlock()
		holder, ok := holders[name]
		return holder, ok
	}
	return func(ctx context.Context) (figures, error) {
		return benchmark(ctx, a, func(b *testing.B) {
			i := 0
			for b.Loop() {
				if _, ok := get(names[i%cached]); !ok {
					b.Fatal("not in the map")
				}
				i++
			}
		})
	}, nil
}}

// linked counts what a program that imports the root package links.
var linked = side{name: ours, open: func(context.Context, *arena) (round, error) {
	return func(ctx context.Context) (figures, error) {
		const modulePath = "{{with .Module}}{{.Path}}{{end}}"
		const library = "github.com/jagregory/locker/v2"
		clients, err := dependencies(ctx, modulePath, "go.etcd.io/etcd/client/v3")
		if err != nil {
			return nil, err
		}
		further := 0
		own, err := dependencies(ctx, modulePath, library)
		if err != nil {
			return nil, err
		}
		for module := range own {
			if !clients[module] && module != library {
				further++
			}
		}
		packages, err := dependencies(ctx, "{{.ImportPath}}", library)
		if err != nil {
			return nil, err
		}
		ofServer := 0
		for path := range packages {
			if strings.HasPrefix(path, "go.etcd.io/etcd/server/") {
				ofServer++
			}
		}
		return figures{modules: float64(further), servers: float64(ofServer)}, nil
	}, nil
}}

// dependencies returns the packages that an importer of pkg links, each in the given
// format of go list.
func dependencies(ctx context.Context, format, pkg string) (map[string]bool, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-f", format, pkg)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w\n%s", pkg, err, &stderr)
	}
	set := make(map[string]bool)
	for _, path := range strings.Fields(string(out)) {
		set[path] = true
	}
	return set, nil
}
