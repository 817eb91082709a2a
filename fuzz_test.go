package locker

import (
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/jagregory/locker/v2/internal/fakeetcd"
	"github.com/jagregory/locker/v2/internal/key"
)

// foreign are keys and values that no Locker has written.
var foreign = []string{
	"locker/a/1", "locker/a/2", "locker/a/", "locker/a//", "locker/a/1/2", "locker/a", "locker/", "locker//1", "locker//",
	"locker/a%2Fb/1", "locker/a%2fb/1", "locker/%/1", "locker/%41/1", "locker/%4", "locker/%2F/", "locker/\xff/1", "locker/\x00/1", "lockers/a/1", "",
	`{"host":"h","pid":1,"program":"p","start":"2026-01-02T03:04:05Z","version":"2.0.0"}`, `{"pid":"x"}`, `{"host":`, "null", "[]", `{"start":"never"}`,
}

func FuzzNames(f *testing.F) {
	for _, s := range foreign {
		f.Add(s)
	}
	f.Add(strings.Repeat("ö", MaxNameLength/2))
	f.Add(strings.Repeat("ö", MaxNameLength/2) + "o")
	space := key.NewSpace(DefaultPrefix)
	f.Fuzz(func(t *testing.T, name string) {
		want := name != "" && len(name) <= MaxNameLength && utf8.ValidString(name) && strings.IndexFunc(name, unicode.IsControl) < 0
		err := checkName(name)
		if (err == nil) != want {
			t.Fatalf("%q: %v", name, err)
		}
		if got, ok := space.Name(space.Entry(name, "1", key.Exclusive, 1)); err == nil && (!ok || got != name) {
			t.Errorf("%q comes back as %q", name, got)
		}
		var invalid *InvalidError
		if err == nil {
			return
		}
		if text := wrap("lock", name, err).Error(); !errors.As(err, &invalid) || len(text) > 1000 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			t.Errorf("%q: the error says %q", name, text)
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add(DefaultPrefix, int64(DefaultTTL), int64(time.Second), 1)
	f.Add("", int64(0), int64(0), 0)
	f.Add("a", int64(10*time.Second), int64(6*time.Second), 1)
	f.Add("/", int64(time.Second), int64(time.Second/2), 1<<40)
	f.Add("a\x00", int64(365*24*time.Hour), int64(365*12*time.Hour), -1)
	f.Add("a", int64(1<<63-1), int64(-1<<63), 2)
	server := fakeetcd.New()
	f.Cleanup(server.Close)
	etcd, err := server.Connect()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = etcd.Close() })
	f.Fuzz(func(t *testing.T, prefix string, ttl, margin int64, shares int) {
		c, err := New(etcd, WithPrefix(prefix), WithTTL(time.Duration(ttl)), WithSafetyMargin(time.Duration(margin)), WithLocalHandover(shares))
		if err != nil {
			if !errors.Is(err, ErrInvalid) || c != nil {
				t.Errorf("%v, %v", c, err)
			}
			return
		}
		defer c.Close()
		if c.ttl < time.Second || c.margin <= 0 || c.margin > c.ttl/2 || c.shares < 1 || !strings.HasSuffix(c.keys.Queue(""), "//") {
			t.Errorf("accepted: TTL %v, margin %v, %d shares, prefix %q", c.ttl, c.margin, c.shares, c.keys.Queue(""))
		}
		// etcd may grant another TTL: whatever it is, the deadline lies before its end.
		for _, granted := range []time.Duration{time.Second, c.ttl, 4 * c.ttl} {
			if m := c.marginOf(granted); m <= 0 || m > granted/2 {
				t.Errorf("a margin of %v for a TTL of %v", m, granted)
			}
		}
	})
}

// FuzzEntries lets other programs put anything: all calls must report the same of it.
func FuzzEntries(f *testing.F) {
	for i, s := range foreign {
		f.Add(s, s, foreign[(i+1)%len(foreign)])
		f.Add(DefaultPrefix+s, "value", DefaultPrefix+"a/1")
		f.Add(DefaultPrefix+"/1", s, s)
	}
	server := fakeetcd.New()
	f.Cleanup(server.Close)
	etcd, err := server.Connect()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = etcd.Close() })
	c, err := New(etcd)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	f.Fuzz(func(t *testing.T, first, value, second string) {
		for _, k := range []string{first, second} {
			server.Write(k, value, 0)
			defer server.Delete(k)
		}
		ctx := t.Context()
		list, err := c.List(ctx, "")
		if err != nil || len(list) > 2 {
			t.Fatal(list, err)
		}
		if !slices.IsSortedFunc(list, func(a, b Holder) int { return cmp.Compare(a.Name, b.Name) }) {
			t.Errorf("not sorted by name: %+v", list)
		}
		cache, err := c.NewCache(ctx, "")
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		if cached := cache.List(); !slices.Equal(cached, list) {
			t.Errorf("List has %+v, a cache %+v", list, cached)
		}
		for i, holder := range list {
			if i == 0 || list[i-1].Name != holder.Name {
				agree(t, c, holder)
			}
		}
		owners, err := c.Owners(ctx)
		if _, ok := owners[0]; err != nil || ok && !json.Valid([]byte(value)) {
			t.Errorf("%q has become %+v, %v", value, owners, err)
		}
	})
}

// agree fails the test unless all calls report the same holder.
func agree(t *testing.T, c *Client, holder Holder) {
	t.Helper()
	ctx := t.Context()
	if got, err := c.Get(ctx, holder.Name); got != holder && !errors.Is(err, ErrInvalid) {
		t.Errorf("List has %+v, Get %+v, %v", holder, got, err)
	}
	for state, err := range c.Watch(ctx, holder.Name) {
		if state.Holder != holder && !errors.Is(err, ErrInvalid) {
			t.Errorf("List has %+v, Watch %+v, %v", holder, state, err)
		}
		break
	}
	var locked *LockedError
	if _, err := c.TryLock(ctx, holder.Name, ""); !errors.Is(err, ErrInvalid) && (!errors.As(err, &locked) || locked.Holder != holder) {
		t.Errorf("List has %+v, TryLock %v", holder, err)
	}
}

// FuzzChanges applies changes of keys, a byte each: the view of a follower must match the
// content of etcd.
func FuzzChanges(f *testing.F) {
	f.Add(strings.Join(foreign, "\n"), []byte("\x00\x01\x82\x41\x00\x80\x21\x05\x09\x89\x0f\xc0"))
	f.Add("locker/a/1\nlocker/a/2\nlocker/b/1", []byte("\x00\x01\x02\x40\x80\x81\x40\x00\x41"))
	f.Add("", []byte("\x00\x80"))
	f.Fuzz(func(t *testing.T, keys string, script []byte) {
		h := history{
			keys:    strings.Split(keys, "\n"),
			space:   key.NewSpace(DefaultPrefix),
			present: make(map[string]*mvccpb.KeyValue),
		}
		h.queueView = queueView{keys: h.space}
		h.queueView.load(&pb.RangeResponse{Header: new(pb.ResponseHeader)}, "")
		for _, b := range script {
			h.change(t, b)
		}
		h.commit(t)
		if changed := h.queueView.load(h.all(), ""); len(changed) > 0 {
			t.Errorf("a read after all changes reported %+v", changed)
		}
	})
}

// history is the content of etcd, and the view that a follower has of it.
type history struct {
	keys      []string
	space     key.Space
	queueView queueView
	revision  int64
	present   map[string]*mvccpb.KeyValue   // by key
	queues    map[string][]*mvccpb.KeyValue // the same by name, the oldest first, at the revision
	events    []*mvccpb.Event               // of the revision to come
}

// change puts or deletes the key that b picks. One bit of b says which, another that a revision ends before it.
func (h *history) change(t *testing.T, b byte) {
	const deletes, ends = 0x80, 0x40
	if b&ends != 0 {
		h.commit(t)
	}
	k := h.keys[int(b&^(deletes|ends))%len(h.keys)]
	// A transaction changes a key once, and nobody puts two entries into a queue at once:
	// neither would be the older one.
	name, _ := h.space.Name(k)
	if slices.ContainsFunc(h.events, func(ev *mvccpb.Event) bool {
		other, _ := h.space.Name(string(ev.Kv.Key))
		return string(ev.Kv.Key) == k || other == name && ev.Type == mvccpb.Event_PUT
	}) {
		h.commit(t)
	}
	at := h.revision + 1
	old := h.present[k]
	switch {
	case b&deletes == 0 && old == nil:
		h.put(&mvccpb.KeyValue{Key: []byte(k), CreateRevision: at, ModRevision: at})
	case b&deletes == 0:
		h.put(&mvccpb.KeyValue{Key: []byte(k), CreateRevision: old.CreateRevision, ModRevision: at, Value: []byte{b}})
	case old != nil:
		delete(h.present, k)
		h.events = append(h.events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(k), ModRevision: at}})
	}
}

func (h *history) put(kv *mvccpb.KeyValue) {
	h.present[string(kv.Key)] = kv
	h.events = append(h.events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv})
}

// commit ends a revision, and fails the test unless the follower reports what has changed in it.
func (h *history) commit(t *testing.T) {
	if len(h.events) == 0 {
		return
	}
	before := h.holders()
	h.revision++
	changed := h.queueView.apply(h.events, h.revision-1)
	h.events = nil
	after := make(map[string][]*mvccpb.KeyValue)
	for _, kv := range h.present {
		if name, ok := h.space.Name(string(kv.Key)); ok {
			after[name] = append(after[name], kv)
		}
	}
	for _, queue := range after {
		slices.SortFunc(queue, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	}
	h.queues = after
	var want []State
	for name, now := range h.holders() {
		if !slices.Equal(now, before[name]) {
			want = append(want, State{Holder: now[0], Held: true, Holders: len(now), Revision: h.revision})
		}
	}
	for name := range before {
		if len(after[name]) == 0 {
			want = append(want, State{Holder: Holder{Name: name}, Revision: h.revision})
		}
	}
	slices.SortFunc(want, func(a, b State) int { return cmp.Compare(a.Name, b.Name) })
	if !slices.Equal(changed, want) {
		t.Fatalf("at revision %d it reports %+v, want %+v", h.revision, changed, want)
	}
}

// holders returns by the letter of the rule who holds each name.
func (h *history) holders() map[string][]Holder {
	all := make(map[string][]Holder)
	for name, queue := range h.queues {
		for i, kv := range queue {
			kind := h.space.KindOf(string(kv.Key))
			for _, ahead := range queue[:i] {
				other := h.space.KindOf(string(ahead.Key))
				if (other == key.Shared) != (kind == key.Shared) {
					kind = -1
					break
				}
				kind = min(kind, other)
			}
			if kind == key.Shared || int(kind) > i {
				all[name] = append(all[name], holderOf(h.space, name, kv))
			}
		}
	}
	return all
}

// all returns the answer to a read of everything.
func (h *history) all() *pb.RangeResponse {
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: h.revision}}
	for _, k := range slices.Sorted(maps.Keys(h.present)) {
		resp.Kvs = append(resp.Kvs, h.present[k])
	}
	return resp
}
