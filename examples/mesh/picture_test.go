package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/jagregory/locker/v2"
)

// draft describes a service of a picture: "cascade ready serving needs a b".
type draft map[string]string

func (d draft) picture() picture {
	p, revision := make(picture), int64(0)
	for name, text := range d {
		text, needs, _ := strings.Cut(text, "needs ")
		r := record{Address: name + ":80", Needs: strings.Fields(needs), Cascade: strings.Contains(text, "cascade")}
		for word, prefix := range map[string]string{"ready": readyPrefix, "serving": servingPrefix} {
			revision++
			holder := locker.Holder{Name: prefix + name, Value: r.String(), Token: revision}
			p.take(locker.State{Holder: holder, Held: true, Revision: revision})
			if !strings.Contains(text, word) {
				p.take(locker.State{Holder: locker.Holder{Name: prefix + name}, Revision: revision})
			}
		}
	}
	return p
}

func TestAConditionAndItsCausesFollowFromTheRecords(t *testing.T) {
	t.Parallel()
	chain := draft{
		"shop":     "cascade ready needs orders",
		"orders":   "cascade ready needs database queue",
		"search":   "ready serving needs database",
		"admin":    "ready serving needs search",
		"report":   "cascade ready serving needs search",
		"mailer":   "cascade ready needs search",
		"queue":    "cascade ready serving",
		"database": "cascade",
	}
	circle := draft{
		"a": "cascade ready needs b c",
		"b": "cascade ready needs a",
		"c": "cascade",
	}
	for _, test := range []struct {
		about     string
		draft     draft
		name      string
		condition condition
		because   string
	}{
		{"not ready", chain, "database", down, "database"},
		{"one above it", chain, "orders", down, "database"},
		{"two above it", chain, "shop", down, "database"},
		{"beside it", chain, "queue", up, ""},
		{"does not cascade", chain, "search", degraded, "database"},
		{"above what does not cascade", chain, "admin", up, ""},
		{"cascades above what does not", chain, "report", up, ""},
		{"about to serve above what does not cascade", chain, "mailer", down, ""},
		{"in a circle with one that needs it", circle, "a", down, "c"},
		{"in a circle", circle, "b", down, "c"},
		{"needed only", draft{"a": "ready serving needs b"}, "b", neverSeen, ""},
		{"needs what was never seen", draft{"a": "ready serving needs b"}, "a", degraded, "b"},
		{"a circle without a cause", draft{"a": "cascade ready needs b", "b": "cascade ready needs a"}, "a", down, ""},
		{"about to serve", draft{"a": "cascade ready"}, "a", down, ""},
		{"two causes", draft{"a": "ready cascade needs c b", "b": "", "c": ""}, "a", down, "b c"},
		{"down itself and by another", draft{"a": "cascade needs b", "b": ""}, "a", down, "a"},
		{"needs one that is about to serve", draft{"a": "ready serving needs b", "b": "ready"}, "a", degraded, "b"},
		{"needs itself", draft{"a": "cascade ready serving needs a"}, "a", up, ""},
		{"unknown", draft{}, "a", neverSeen, ""},
	} {
		got, because := test.draft.picture().judge(test.name)
		if got != test.condition || strings.Join(because, " ") != test.because {
			t.Errorf("%s: %s is %s because of %v, want %s because of [%s]", test.about, test.name, got, because, test.condition, test.because)
		}
	}
}

func TestWhatHasToServeFirstLeavesOutCircles(t *testing.T) {
	t.Parallel()
	p := draft{
		"a":     "cascade ready needs b base",
		"b":     "cascade ready needs c",
		"c":     "cascade ready needs a",
		"base":  "cascade ready",
		"over":  "cascade ready needs a c",
		"loose": "ready needs tight",
		"tight": "cascade ready needs loose",
	}.picture()
	for name, want := range map[string][]string{
		"a":     {"base"},   // b waits for a
		"b":     nil,        // c waits for a, which waits for b
		"over":  {"a", "c"}, // nothing of the circle waits for it
		"loose": nil,        // tight waits for it
		"tight": {"loose"},  // loose waits for nobody
		"base":  nil,        // needs nothing
		"gone":  nil,        // not there
	} {
		if got := p.ahead(name); !slices.Equal(got, want) {
			t.Errorf("before %s: %v, want %v", name, got, want)
		}
	}
}

func TestNobodyWaitsForEver(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := make(draft)
		for i := range rapid.IntRange(1, 7).Draw(t, "services") {
			words := rapid.SampledFrom([]string{"ready", "cascade", "cascade ready", "cascade ready"}).Draw(t, "kind")
			needs := rapid.SliceOfDistinct(rapid.IntRange(0, 6), rapid.ID).Draw(t, "needs")
			d[fmt.Sprint(i)] = words + " needs " + strings.Trim(fmt.Sprint(needs), "[]")
		}
		p := d.picture()
		// Each serves as soon as nothing is in its way, until nobody moves any more.
		for moved := true; moved; {
			moved = false
			for name, s := range p {
				if !p.serves(name) && len(p.causes(name)) == 0 && (!s.Cascade || len(p.ahead(name)) == 0) {
					s.serving.Held, moved = true, true
				}
			}
		}
		for name, s := range p {
			causes := p.causes(name)
			if p.serves(name) != (len(causes) == 0) {
				t.Errorf("%s serves: %v, though the causes are %v, in %v", name, p.serves(name), causes, d)
			}
			if missing := p.missing(name); p.serves(name) && s.Cascade && len(missing) > 0 {
				t.Errorf("%s serves without %v, in %v", name, missing, d)
			}
		}
	})
}

func TestWhatAServiceNeedsIsRememberedAfterItIsGone(t *testing.T) {
	t.Parallel()
	p := draft{"a": "cascade needs b"}.picture()
	if s := p["a"]; !slices.Equal(s.Needs, []string{"b"}) || s.Address != "a:80" {
		t.Errorf("remembered: %+v", s)
	}
}

func TestForeignRecordsDoNoHarm(t *testing.T) {
	t.Parallel()
	p := make(picture)
	for _, name := range []string{"", "ready/", "ready/a/b", "service/<script>", "other/a", "service/" + strings.Repeat("a", 64)} {
		if got, ok := p.take(locker.State{Holder: locker.Holder{Name: name}, Held: true}); ok {
			t.Errorf("%q was taken for the service %q", name, got)
		}
	}
	p.take(locker.State{Holder: locker.Holder{Name: "service/a", Value: "10.0.0.1"}, Held: true})
	p.take(locker.State{Holder: locker.Holder{Name: "service/b", Value: `{"address":"x","needs":["a","<b>","a"]}`}, Held: true})
	if len(p) != 2 || p["a"].Address != "10.0.0.1" || !slices.Equal(p["b"].Needs, []string{"a"}) {
		t.Errorf("picture: %+v %+v", p["a"], p["b"])
	}
	var many record
	for i := range 2 * mostNeeds {
		many.Needs = append(many.Needs, fmt.Sprint(i/2)) // each twice
	}
	many.Needs = append(many.Needs, "one-more")
	if got := parseRecord(many.String()).Needs; len(got) != mostNeeds || got[mostNeeds-1] != fmt.Sprint(mostNeeds-1) {
		t.Errorf("of %d needs %d are left, the last %s", len(many.Needs), len(got), got[len(got)-1])
	}
}
