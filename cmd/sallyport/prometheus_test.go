package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// promtool runs Prometheus' own checker, where it is installed (Debian: package prometheus).
func promtool(t *testing.T, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("SALLYPORT_LAB") == "required" {
		t.Fatal(err, ": see .ci/promtool")
	}
	if err != nil {
		t.Skip("the rules are not checked by Prometheus: ", err)
	}
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

func TestAlertsDoWhatTheirTestsSay(t *testing.T) {
	promtool(t, "test", "rules", "../../deploy/prometheus/alerts_test.yaml")
}

// TestEveryAlertIsTested by name, in a test that expects it.
func TestEveryAlertIsTested(t *testing.T) {
	alerts := namesIn(t, `(?m)^  - alert: (\w+)$`, "../../deploy/prometheus/alerts.yaml")
	tested := strings.Join(namesIn(t, `\b(Sallyport\w+)`, "../../deploy/prometheus/alerts_test.yaml"), " ") + " "
	if len(alerts) < 10 {
		t.Fatalf("found only the alerts %v", alerts)
	}
	for _, a := range alerts {
		if !strings.Contains(tested, a+" ") {
			t.Errorf("no test expects %s", a)
		}
	}
}

// TestDashboardQueriesAreValid hands the dashboard's queries to Prometheus as recording rules.
func TestDashboardQueriesAreValid(t *testing.T) {
	data, err := os.ReadFile("../../deploy/grafana/sallyport.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	rules := "groups:\n- name: dashboard\n  rules:\n"
	n := 0
	variables := strings.NewReplacer("$__rate_interval", "5m", "$job", ".+", "$instance", ".+")
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			expr := variables.Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("panel %q has a variable that the dashboard does not define: %s", p.Title, target.Expr)
			}
			rules += fmt.Sprintf("  - record: panel:%d\n    expr: %q\n", n, expr)
			n++
		}
	}
	if n < 20 {
		t.Fatalf("the dashboard has only %d queries", n)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}
