// Package txn makes requests to etcd's key-value store until their outcome is certain, or
// until nobody waits for them any more. It knows neither clients nor sessions nor locks: a
// transaction names the queue that it writes and the record that guards it, and a [Store]
// is built from a few functions.
//
// Its one idea is that a write is idempotent. So it may be sent more than once, and an
// attempt whose answer is lost is followed by another:
//
//	caller          caller          caller     Commit, Write, or Start and Await
//	     \             |             /
//	      +---------- group --------+          gathers writes while transactions are in flight
//	                   |
//	              transaction                  of one write, or of several: flat or nested
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
// a write. (Only a refusal of several writes together decides nothing: they are sent again,
// nested or each alone.) Until then the write is sent again as long as somebody waits for
// it. Its Landed function is given the outcome of every attempt, so that a caller can count
// those that may yet take effect.
//
// A write that leaves at once and alone is sent in the goroutine of its caller, and is cut
// off soon after the context of the call has ended. What else there is to do is done by
// goroutines of the Store, which outlast the call.
//
// Doubt has three sources: an answer that never came; etcd's answer that its space is used
// up, which it also gives to what it has applied; and etcd's own client, which may send a
// request more than once without saying so. [Repeats] is the one place that notices that.
//
// Reads go the same way without the group: [Ask] hedges and repeats any idempotent
// request, [Store.Read] reads what is small, [Store.ReadSince] does so without the leader if
// it can, and [Store.ReadAll] reads a whole range, page by page.
package txn
