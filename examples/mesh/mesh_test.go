package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/jagregory/locker/v2"
)

// draft describes the services of a mesh, such as "cascade ready serving needs a b".
type draft map[string]string

func (d draft) build() mesh {
	m, revision := make(mesh), int64(0)
	for name, text := range d {
		text, needs, _ := strings.Cut(text, "needs ")
		r := record{Address: name + ":80", Needs: strings.Fields(needs), Cascade: strings.Contains(text, "cascade")}
		for word, prefix := range map[string]string{"ready": readyPrefix, "serving": servingPrefix} {
			revision++
			holder := locker.Holder{Name: prefix + name, Value: r.String(), Token: revision}
			m.apply(locker.State{Holder: holder, Held: true, Revision: revision})
			if !strings.Contains(text, word) {
				m.apply(locker.State{Holder: locker.Holder{Name: prefix + name}, Revision: revision})
			}
		}
	}
	return m
}

func TestMesh_ConditionAndCausesFollowFromTheRecords(t *testing.T) {
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
	cycle := draft{
		"a": "cascade ready needs b c",
		"b": "cascade ready needs a",
		"c": "cascade",
	}
	for _, test := range []struct {
		description string
		draft       draft
		name        string
		condition   condition
		because     string
	}{
		{"not ready", chain, "database", down, "database"},
		{"needs it directly", chain, "orders", down, "database"},
		{"needs it indirectly", chain, "shop", down, "database"},
		{"does not need it", chain, "queue", up, ""},
		{"does not cascade", chain, "search", degraded, "database"},
		{"needs a service that does not cascade", chain, "admin", up, ""},
		{"cascades, needs a service that does not", chain, "report", up, ""},
		{"about to serve, needs a service that does not cascade", chain, "mailer", down, ""},
		{"in a cycle, needs it directly", cycle, "a", down, "c"},
		{"in a cycle, needs it indirectly", cycle, "b", down, "c"},
		{"needed only", draft{"a": "ready serving needs b"}, "b", neverSeen, ""},
		{"needs a service never seen", draft{"a": "ready serving needs b"}, "a", degraded, "b"},
		{"in a cycle without a cause", draft{"a": "cascade ready needs b", "b": "cascade ready needs a"}, "a", down, ""},
		{"about to serve", draft{"a": "cascade ready"}, "a", down, ""},
		{"two causes", draft{"a": "ready cascade needs c b", "b": "", "c": ""}, "a", down, "b c"},
		{"not ready, and needs one that is not", draft{"a": "cascade needs b", "b": ""}, "a", down, "a"},
		{"needs a service about to serve", draft{"a": "ready serving needs b", "b": "ready"}, "a", degraded, "b"},
		{"needs itself", draft{"a": "cascade ready serving needs a"}, "a", up, ""},
		{"unknown", draft{}, "a", neverSeen, ""},
	} {
		got, because := test.draft.build().conditionOf(test.name)
		if got != test.condition || strings.Join(because, " ") != test.because {
			t.Errorf("%s: %s is %s because of %v, want %s because of [%s]", test.description, test.name, got, because, test.condition, test.because)
		}
	}
}

func TestMesh_PrerequisitesLeaveOutCycles(t *testing.T) {
	t.Parallel()
	m := draft{
		"a":     "cascade ready needs b base",
		"b":     "cascade ready needs c",
		"c":     "cascade ready needs a",
		"base":  "cascade ready",
		"over":  "cascade ready needs a c",
		"loose": "ready needs tight",
		"tight": "cascade ready needs loose",
	}.build()
	for name, want := range map[string][]string{
		"a":     {"base"},   // b waits for a
		"b":     nil,        // c waits for a, which waits for b
		"over":  {"a", "c"}, // nothing in the cycle waits for it
		"loose": nil,        // tight waits for it
		"tight": {"loose"},  // loose waits for nothing
		"base":  nil,        // needs nothing
		"gone":  nil,        // does not exist
	} {
		if got := m.prerequisites(name); !slices.Equal(got, want) {
			t.Errorf("before %s: %v, want %v", name, got, want)
		}
	}
}

func TestMesh_NoServiceWaitsForever(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := make(draft)
		for i := range rapid.IntRange(1, 7).Draw(t, "services") {
			words := rapid.SampledFrom([]string{"ready", "cascade", "cascade ready", "cascade ready"}).Draw(t, "kind")
			needs := rapid.SliceOfDistinct(rapid.IntRange(0, 6), rapid.ID).Draw(t, "needs")
			d[fmt.Sprint(i)] = words + " needs " + strings.Trim(fmt.Sprint(needs), "[]")
		}
		m := d.build()
		// Each service serves as soon as nothing prevents it, until nothing changes any
		// more.
		for changed := true; changed; {
			changed = false
			for name, s := range m {
				if !m.serves(name) && len(m.causes(name)) == 0 && (!s.Cascade || len(m.prerequisites(name)) == 0) {
					s.serving.Held, changed = true, true
				}
			}
		}
		for name, s := range m {
			causes := m.causes(name)
			if m.serves(name) != (len(causes) == 0) {
				t.Errorf("%s is serving: %v, but the causes are %v, in %v", name, m.serves(name), causes, d)
			}
			if missing := m.missing(name); m.serves(name) && s.Cascade && len(missing) > 0 {
				t.Errorf("%s is serving without %v, in %v", name, missing, d)
			}
		}
	})
}

func TestMesh_RemembersTheDependenciesOfAServiceThatIsGone(t *testing.T) {
	t.Parallel()
	m := draft{"a": "cascade needs b"}.build()
	if s := m["a"]; !slices.Equal(s.Needs, []string{"b"}) || s.Address != "a:80" {
		t.Errorf("state after the service is gone: %+v", s)
	}
}

func TestMesh_ToleratesForeignRecords(t *testing.T) {
	t.Parallel()
	m := make(mesh)
	for _, name := range []string{"", "ready/", "ready/a/b", "service/<script>", "other/a", "service/" + strings.Repeat("a", 64)} {
		if got, ok := m.apply(locker.State{Holder: locker.Holder{Name: name}, Held: true}); ok {
			t.Errorf("%q was taken for a name of the service %q", name, got)
		}
	}
	m.apply(locker.State{Holder: locker.Holder{Name: "service/a", Value: "10.0.0.1"}, Held: true})
	m.apply(locker.State{Holder: locker.Holder{Name: "service/b", Value: `{"address":"x","needs":["a","<b>","a"]}`}, Held: true})
	if len(m) != 2 || m["a"].Address != "10.0.0.1" || !slices.Equal(m["b"].Needs, []string{"a"}) {
		t.Errorf("mesh: %+v %+v", m["a"], m["b"])
	}
	var many record
	for i := range 2 * maxNeeds {
		many.Needs = append(many.Needs, fmt.Sprint(i/2)) // each twice
	}
	many.Needs = append(many.Needs, "one-more")
	if got := parseRecord(many.String()).Needs; len(got) != maxNeeds || got[maxNeeds-1] != fmt.Sprint(maxNeeds-1) {
		t.Errorf("%d needs were reduced to %d, the last of which is %s", len(many.Needs), len(got), got[len(got)-1])
	}
}
