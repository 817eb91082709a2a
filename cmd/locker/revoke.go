package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/jagregory/locker/v2"
)

// leasesOf returns the leases of entries, each once.
func leasesOf(entries []locker.Entry) []clientv3.LeaseID {
	ids := make(map[clientv3.LeaseID]bool)
	for _, e := range entries {
		ids[e.Lease] = true
	}
	return slices.Sorted(maps.Keys(ids))
}

// listLeases shows what goes along with the leases of entries: locks, and other keys.
func (f *force) listLeases(ctx context.Context, c *locker.Client, etcd *clientv3.Client, entries []locker.Entry) error {
	all, err := c.Queues(ctx, "")
	if err != nil {
		return err
	}
	for _, id := range leasesOf(entries) {
		resp, err := etcd.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil {
			return fmt.Errorf("nothing was removed: what is on lease %x cannot be listed: %w", id, cmp.Or(context.Cause(ctx), err))
		}
		if resp.TTL < 0 {
			return fmt.Errorf("nothing was removed: lease %x is gone already", id)
		}
		var lines [][]string
		locks := make(map[string]bool)
		for _, e := range all {
			if e.Lease == id {
				r := rowOf(e)
				locks[e.Key] = true
				lines = append(lines, []string{printable(e.Name), r.State, r.kind(), r.value(f.format), strconv.FormatInt(e.Token, 10)})
			}
		}
		f.say("\nRevoking lease %x removes these locks and waiters:", id)
		if err := printTable(f.program.stderr, []string{"NAME", "STATE", "KIND", "VALUE", "TOKEN"}, lines); err != nil {
			return err
		}
		f.listOthers(resp.Keys, locks)
	}
	return nil
}

// listOthers shows the keys on a lease that are neither locks nor the record of the session.
func (f *force) listOthers(keys [][]byte, locks map[string]bool) {
	records := strings.TrimSuffix(f.program.connection.prefix, "/") + "//"
	first := true
	for _, key := range keys {
		if locks[string(key)] || strings.HasPrefix(string(key), records) {
			continue
		}
		if first {
			f.say("and these other keys:")
			first = false
		}
		f.say("%s", printable(string(key)))
	}
}

// revoke revokes the leases of entries, unless they have changed since they were shown.
func (f *force) revoke(ctx context.Context, c *locker.Client, etcd *clientv3.Client, shown []locker.Entry) error {
	entries, err := f.entries(ctx, c)
	if err != nil {
		return err
	}
	leases := leasesOf(entries)
	if !slices.Equal(leases, leasesOf(shown)) {
		return errors.New("nothing was removed: the entry has changed in the meantime; try again")
	}
	for _, id := range leases {
		if _, err := etcd.Revoke(ctx, id); err != nil && ctx.Err() != nil {
			return f.unsure(ctx)
		} else if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return fmt.Errorf("lease %x cannot be revoked: %w", id, err)
		} else if err != nil {
			return fmt.Errorf("nothing was removed: lease %x is gone already", id)
		}
	}
	return f.report(entries)
}
