package systest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jagregory/locker/v2"
)

// compare returns an error for each difference of etcd, or of what the library reports, from the model.
func (w *world) compare() error {
	tokens := make(map[*claim]int64)
	var errs []error
	for _, name := range modelledNames {
		errs = append(errs, w.compareQueue(name, tokens))
	}
	clear(w.latest)
	if err := errors.Join(errs...); err != nil {
		return err // nothing else could be as it should be
	}
	for _, c := range w.callers {
		errs = append(errs, w.compareCaller(c, tokens[c.claim]))
	}
	ctx, cancel := context.WithTimeout(w.Context(), w.quiesce+time.Second)
	defer cancel()
	held := []locker.Holder{}
	for _, name := range modelledNames {
		var holders []locker.Holder
		for i, c := range w.holders(name) {
			holders = append(holders, holderBy(c.of(name), w.Server.Queue(queues[name])[i]))
		}
		errs = append(errs, w.compareHolders(ctx, name, holders))
		held = append(held, holders...)
	}
	list, err := w.observer.List(ctx, "")
	if cached := w.cache.List(); err != nil || !slices.Equal(list, held) || !slices.Equal(cached, held) {
		errs = append(errs, fmt.Errorf("List says %+v, %w, and that of the cache %+v, it should be %+v", list, err, cached, held))
	}
	return errors.Join(errs...)
}

// compareQueue returns an error if the queue of a name is not as it should be. It notes the tokens of the claims.
func (w *world) compareQueue(name string, tokens map[*claim]int64) error {
	var got, should []string
	entries := w.Server.Queue(queues[name])
	for _, kv := range entries {
		got = append(got, string(kv.Value))
	}
	w.arrange(name, got)
	queue := w.queues[name]
	for _, c := range queue {
		should = append(should, c.of(name).value)
	}
	if !slices.Equal(got, should) {
		return fmt.Errorf("the queue of %s is %q, it should be %q", name, got, should)
	}
	last := w.tokens[name]
	for i, c := range queue {
		token := entries[i].CreateRevision
		if other, ok := tokens[c]; ok && other != token {
			return fmt.Errorf("%v has the tokens %d and %d", c, other, token)
		}
		tokens[c] = token
		if w.latest[c] && token <= last {
			return fmt.Errorf("%v has token %d, but %d was there before", c, token, last)
		}
		if i > 0 && token == entries[i-1].CreateRevision && (c.client != queue[i-1].client || c.of(name).limit+queue[i-1].of(name).limit > 0) {
			return fmt.Errorf("%v and %v have the same token", queue[i-1], c)
		}
		w.tokens[name] = max(w.tokens[name], token)
	}
	return nil
}

// compareHolders returns an error for each difference of what the library reports about a name from its holders.
func (w *world) compareHolders(ctx context.Context, name string, holders []locker.Holder) error {
	state, missing := locker.State{Holder: locker.Holder{Name: name}}, locker.ErrNotFound
	if len(holders) > 0 {
		state, missing = locker.State{Holder: holders[0], Held: true, Holders: len(holders)}, nil
	}
	var errs []error
	all, err := w.observer.Holders(ctx, name)
	if cached := w.cache.Holders(name); !errors.Is(err, missing) || !slices.Equal(all, holders) || !slices.Equal(cached, holders) {
		errs = append(errs, fmt.Errorf("Holders says %+v, %w, and that of the cache %+v, it should be %+v", all, err, cached, holders))
	}
	oldest, err := w.observer.Get(ctx, name)
	cached, ok := w.cache.Get(name)
	if !state.Held {
		oldest.Name, cached.Name = name, name
	}
	if !errors.Is(err, missing) || ok != state.Held || oldest != state.Holder || cached != state.Holder {
		errs = append(errs, fmt.Errorf("Get says %+v, %w, and that of the cache %+v, %v, it should be %+v", oldest, err, cached, ok, state))
	}
	for _, watch := range w.watches {
		last, ok := watch.last(name)
		if last.Revision = 0; slices.Contains(watch.names, name) && last != state && (ok || state.Held || len(watch.names) == 1) {
			errs = append(errs, fmt.Errorf("the watch of %q says %+v, it should be %+v", watch.names, last, state))
		}
		errs = append(errs, watch.err())
	}
	return errors.Join(errs...)
}

// compareCaller returns an error if what a caller got differs from its claim. The token is that of its entries in etcd.
func (w *world) compareCaller(c *caller, token int64) error {
	select {
	case got := <-c.result:
		c.lock, c.result = got.Lock, nil
		if got.Err != nil && (c.why == nil || !errors.Is(got.Err, c.why)) {
			return fmt.Errorf("%v failed: %w, it should be %v", c, got.Err, c.why)
		}
	default:
	}
	switch {
	case c.why == nil && !w.holds(c.claim):
		if c.result == nil {
			return fmt.Errorf("%v has returned, but it is not its turn", c)
		}
		return nil
	case c.result != nil:
		return fmt.Errorf("%v is still waiting: %v", c, c.why)
	case c.lock == nil:
		return nil // it has failed as it should
	case c.why == nil && c.lock.Token() != token:
		return fmt.Errorf("%v has token %d, but its entries %d", c, c.lock.Token(), token)
	}
	if err := c.lock.Err(); !errors.Is(err, c.why) || !errors.Is(context.Cause(c.lock.Context()), c.why) {
		return fmt.Errorf("%v: %w, it should be %v", c, err, c.why)
	}
	var names []string
	for _, w := range c.wants {
		names = append(names, w.name)
	}
	if value := c.lock.Value(); value != c.wants[0].value || !slices.Equal(c.lock.Names(), names) {
		return fmt.Errorf("%v: its value is %q, and its names are %q", c, value, c.lock.Names())
	}
	return c.compareDo()
}

// compareDo returns an error if the caller called Do, and that has not returned what it should.
func (c *caller) compareDo() error {
	if c.do == nil || c.do.returned == nil {
		return nil
	}
	should := c.why
	if errors.Is(should, locker.ErrReleased) {
		should = nil // the function has returned
	}
	select {
	case err := <-c.do.returned:
		c.do.returned = nil
		if c.why == nil || !errors.Is(err, should) {
			return fmt.Errorf("Do of %v returned %w, it ended with %v", c, err, c.why)
		}
	default:
		if c.why != nil {
			return fmt.Errorf("Do of %v has not returned, though it ended with %w", c, c.why)
		}
	}
	return nil
}
