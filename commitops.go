package locker

import (
	"bytes"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// writesAnything reports whether an operation is not a mere read.
func writesAnything(ops []clientv3.Op) bool {
	return slices.ContainsFunc(ops, func(op clientv3.Op) bool {
		if op.IsTxn() {
			_, success, failure := op.Txn()
			return writesAnything(success) || writesAnything(failure)
		}
		return !op.IsGet()
	})
}

// allows refuses what Commit cannot do: an operation that is none, and one that writes
// what the hold itself consists of. A put would detach the entry, or the record of its
// session, from the lease, so that it outlives both; a delete is for Unlock.
func (l *Lock) allows(ops []clientv3.Op) error {
	if err := l.usable(); err != nil {
		return err
	}
	for _, op := range ops {
		switch {
		case op.IsTxn():
			_, success, failure := op.Txn()
			for _, nested := range [][]clientv3.Op{success, failure} {
				if err := l.allows(nested); err != nil {
					return err
				}
			}
		case op.IsGet():
		case !op.IsPut() && !op.IsDelete():
			return &InvalidError{"operation", "{}", "it is the zero value, use clientv3.OpPut or another"}
		case writes(op, l.key):
			return &InvalidError{"operation", quote(string(op.KeyBytes())), "it would write the entry of the lock; there are SetValue and Unlock"}
		case writes(op, l.session.record()):
			return &InvalidError{"operation", quote(string(op.KeyBytes())), "it would write the record of the lock's session"}
		}
	}
	return nil
}

// writes reports whether a put or a delete is of key. A range without an end is one key,
// and one with the end "\x00" has all keys from its beginning.
func writes(op clientv3.Op, key string) bool {
	from, end, k := op.KeyBytes(), op.RangeBytes(), []byte(key)
	switch {
	case op.IsPut() || len(end) == 0:
		return bytes.Equal(from, k)
	case len(end) == 1 && end[0] == 0:
		return bytes.Compare(from, k) <= 0
	}
	return bytes.Compare(from, k) <= 0 && bytes.Compare(k, end) < 0
}
