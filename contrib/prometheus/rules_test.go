package promlocker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/jagregory/locker/v2"
)

// promtool runs promtool, which comes with Prometheus, and fails the test if that finds anything
// wrong. If LOCKER_TOOLS is "required", there has to be one.
func promtool(t *testing.T, input string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	switch {
	case err == nil:
	case os.Getenv("LOCKER_TOOLS") == "required":
		t.Fatal(err)
	default:
		t.Log("nothing was checked: promtool is not installed")
		return
	}
	cmd := exec.CommandContext(within(t), path, args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestAlerts_FireWhenTheyShould(t *testing.T) {
	t.Parallel()
	promtool(t, "", "check", "rules", "alerts.yml")
	promtool(t, "", "test", "rules", "alerts_test.yml")
}

// busy returns a bundle in which something of everything has happened.
func busy(t *testing.T) *bundle {
	b := setup(t)
	client := b.client(b.etcd.Client(t), brief)
	lock := b.lock(client, "role")
	if _, err := client.TryLock(within(t), "role", ""); !errors.Is(err, locker.ErrLocked) {
		t.Fatal(err)
	}
	receive(t, b.renewals)
	b.unlock(lock)
	return b
}

func TestNames_FollowTheConventionsOfPrometheus(t *testing.T) {
	t.Parallel()
	b := busy(t)
	problems, err := testutil.GatherAndLint(b.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	promtool(t, b.scrape(), "check", "metrics")
}

// scrape returns what Prometheus would read.
func (b *bundle) scrape() string {
	b.Helper()
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(b.registry, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if text := answer.Body.String(); answer.Code == http.StatusOK && text != "" {
		return text
	}
	b.Fatalf("%d: %s", answer.Code, answer.Body)
	return ""
}

// samples returns the lines of a scrape that are no comments, each as a name, labels and a value.
func samples(t *testing.T, scrape string) (all [][]string) {
	t.Helper()
	sample := regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
	for line := range strings.Lines(scrape) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		parts := sample.FindStringSubmatch(strings.TrimSpace(line))
		if parts == nil {
			t.Fatalf("not a sample: %s", line)
		}
		all = append(all, parts[1:])
	}
	return all
}

// dashboard is the part of Grafana's format that is checked here.
type dashboard struct {
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               datasource
		GridPos                  struct{ X, Y, W, H int }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct {
			RefID, Expr, LegendFormat string
			Datasource                datasource
		}
	}
}

type datasource struct{ Type, UID string }

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDashboard_PanelsAreComplete(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	if len(d.Panels) != 6 {
		t.Errorf("%d panels", len(d.Panels))
	}
	variable := datasource{"prometheus", "${datasource}"}
	ids, cells := make(map[int]bool), make(map[[2]int]string)
	for _, p := range d.Panels {
		if p.Type != "timeseries" || p.Title == "" || p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
			t.Errorf("something is missing: %+v", p)
		}
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("%s: there is another panel with the ID %d", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s has no room; there is %q", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		refs := make(map[string]bool)
		for _, target := range p.Targets {
			if refs[target.RefID] || target.RefID == "" || target.LegendFormat == "" || target.Datasource != variable || p.Datasource != variable {
				t.Errorf("%s: %+v", p.Title, target)
			}
			refs[target.RefID] = true
		}
	}
}

// TestQueries_NameWhatIsExported is about the dashboard, its variables and the alerts.
func TestQueries_NameWhatIsExported(t *testing.T) {
	t.Parallel()
	exported := make(map[string]bool)
	for _, sample := range samples(t, busy(t).scrape()) {
		exported[sample[0]] = true
	}
	for _, file := range []string{"dashboard.json", "alerts.yml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`\blocker_\w+`).FindAllString(string(text), -1)
		if len(names) == 0 {
			t.Errorf("%s names nothing", file)
		}
		for _, name := range names {
			if !exported[name] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
}

// TestDashboard_EveryQueryFindsData has Prometheus evaluate the queries of the dashboard over what
// the collector exports, as if that grew at a steady rate.
func TestDashboard_EveryQueryFindsData(t *testing.T) {
	t.Parallel()
	var series, rules, fires []string
	for _, sample := range samples(t, busy(t).scrape()) {
		labels := strings.TrimSuffix(`job="app",`+sample[1], ",")
		series = append(series, fmt.Sprintf(`{series: '%s{%s}', values: 0+%sx30}`, sample[0], labels, sample[2]))
	}
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			query := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*").Replace(target.Expr)
			alert := p.Title + " " + target.RefID
			rules = append(rules, fmt.Sprintf(`{alert: %q, expr: 'count((%s) >= 0) > 0'}`, alert, query)) // NaN is not
			fires = append(fires, fmt.Sprintf(`{alertname: %q, eval_time: 20m, exp_alerts: [{}]}`, alert))
		}
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "rules.yml"), "groups: [{name: dashboard, rules: [", strings.Join(rules, ",\n"), "]}]")
	test := filepath.Join(dir, "test.yml")
	write(t, test, "rule_files: [rules.yml]", "evaluation_interval: 1m", "tests: [{interval: 1m, input_series: [",
		strings.Join(series, ",\n"), "], alert_rule_test: [", strings.Join(fires, ",\n"), "]}]")
	promtool(t, "", "test", "rules", test)
}

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}
