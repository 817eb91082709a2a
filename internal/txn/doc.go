// Package txn makes requests to etcd's key-value store until their outcome is certain, or
// until nobody waits for them any more. It knows neither clients nor sessions nor locks: a
// transaction names the queue that it writes and the record that guards it, and a [Store]
// is built from a few functions.
//
// Its one idea is that a write is idempotent. So it may be sent more than once, and an
// attempt whose answer is lost is followed by another:
//
//	caller          caller          caller     Commit or Write
//	     \             |             /
//	      +---------- group --------+          gathers while transactions are in flight
//	                   |
//	              transaction                  leaves as one: flat, or each write nested in it
//	               /       \
//	  first attempt         hedge              after the hedge delay, to another member
//	               \       /
//	                outcome                    of each attempt at each write:
//
//	  Applied    the compares held, and it was written
//	  Refused    it was not written, nor will be
//	  InDoubt    it may have been written, or may yet be
//
// The first attempt that etcd has answered, even if with a refusal, decides the result of
// a write. Until then the write is sent again as long as somebody waits for it. Its Landed
// function is given the outcome of every attempt, so that a caller can count those that may
// yet take effect.
//
// Doubt has three sources: an answer that never came; etcd's answer that its space is used
// up, which it also gives to what it has applied; and etcd's own client, which may send a
// request more than once without saying so. [Repeats] is the one place that notices that.
//
// Reads go the same way without the group: [Ask] hedges and repeats any idempotent
// request, [Store.Read] reads what is small, and [Store.ReadAll] a whole range,
// page by page.
package txn
