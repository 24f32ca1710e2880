package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A metric is what the page says of one, and the code.
type metric struct {
	kind   string // counter, gauge or histogram; empty where the code does not say it in place
	labels string // as "a,b"
}

// TestMetricsPageIsTrue holds deploy/METRICS.md to the code, both ways.
func TestMetricsPageIsTrue(t *testing.T) {
	code, page := metricsOfCode(t), metricsOfPage(t)
	if len(code) < 20 {
		t.Fatalf("found only %d metrics in the code", len(code))
	}
	for name, want := range code {
		got, documented := page[name]
		switch {
		case !documented:
			t.Errorf("%s is not on the page", name)
		case want.kind != "" && got != want:
			t.Errorf("%s is %v in the code, and on the page %v", name, want, got)
		}
	}
	for name := range page {
		if _, exists := code[name]; !exists {
			t.Errorf("%s is on the page and not in the code", name)
		}
	}
}

// TestDashboardAndAlertsUseMetricsThatExist, and the dashboard shows all of them.
func TestDashboardAndAlertsUseMetricsThatExist(t *testing.T) {
	code := metricsOfCode(t)
	for _, file := range []string{"../../deploy/prometheus/alerts.yaml", "../../deploy/grafana/sallyport.json"} {
		used := namesIn(t, `\b(sallyport_[a-z0-9_]+)`, file)
		if len(used) == 0 {
			t.Errorf("%s uses no metric", file)
		}
		shown := map[string]bool{}
		for _, name := range used {
			shown[baseName(code, name)] = true
		}
		for name := range shown {
			if _, exists := code[name]; !exists {
				t.Errorf("%s uses %s, which does not exist", file, name)
			}
		}
		for name := range code {
			if strings.HasSuffix(file, ".json") && !shown[name] {
				t.Errorf("the dashboard does not show %s", name)
			}
		}
	}
}

// baseName takes from the series of a histogram what is not of its name.
func baseName(code map[string]metric, name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		base := strings.TrimSuffix(name, suffix)
		if base != name && code[base].kind == "histogram" {
			return base
		}
	}
	return name
}

// metricsOfPage reads the rows of the page's tables that begin with a metric.
func metricsOfPage(t *testing.T) map[string]metric {
	t.Helper()
	data, err := os.ReadFile("../../deploy/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]metric{}
	word := regexp.MustCompile("(?:^|, |; )`([a-z]+)`") // of a cell such as "`a`, `b`: its, values; `c`"
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.HasPrefix(cells[1], " `sallyport_") {
			continue
		}
		var labels []string
		for _, m := range word.FindAllStringSubmatch(strings.TrimSpace(cells[3]), -1) {
			labels = append(labels, m[1])
		}
		name := strings.Trim(cells[1], " `")
		if _, again := out[name]; again {
			t.Errorf("%s is on the page twice", name)
		}
		out[name] = metric{strings.TrimSpace(cells[2]), strings.Join(labels, ",")}
	}
	return out
}

// metricsOfCode finds every string in the product's code that names a metric, and how it is made.
func metricsOfCode(t *testing.T) map[string]metric {
	t.Helper()
	out := map[string]metric{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "bench" || strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if name, err := strconv.Unquote(n.Value); err == nil && isMetric(name) && out[name].kind == "" {
					out[name] = metric{}
				}
			case *ast.CallExpr:
				maps.Copy(out, constructed(n))
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var isMetric = regexp.MustCompile(`^sallyport_[a-z0-9_]+$`).MatchString

// constructed is the metric that a call such as f.NewCounterVec(prometheus.CounterOpts{Name: …}, []string{…}) makes.
func constructed(call *ast.CallExpr) map[string]metric {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !strings.HasPrefix(f.Sel.Name, "New") || len(call.Args) == 0 {
		return nil
	}
	options, ok := call.Args[0].(*ast.CompositeLit)
	if !ok {
		return nil
	}
	kind := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(f.Sel.Name, "New"), "Vec"), "Func"))
	name, labels := "", []string{}
	for _, e := range options.Elts {
		if field, ok := e.(*ast.KeyValueExpr); ok {
			switch field.Key.(*ast.Ident).Name {
			case "Name":
				name = strings.Join(stringsIn(field.Value), "")
			case "ConstLabels":
				labels = append(labels, keysOf(field.Value)...)
			}
		}
	}
	if !isMetric(name) {
		return nil
	}
	if len(call.Args) > 1 {
		labels = append(labels, stringsIn(call.Args[1])...)
	}
	return map[string]metric{name: {kind, strings.Join(labels, ",")}}
}

// keysOf lists the keys of a map literal.
func keysOf(e ast.Expr) (out []string) {
	if m, ok := e.(*ast.CompositeLit); ok {
		for _, element := range m.Elts {
			out = slices.Concat(out, stringsIn(element.(*ast.KeyValueExpr).Key))
		}
	}
	return out
}

// stringsIn lists the string literals of an expression.
func stringsIn(e ast.Expr) (out []string) {
	ast.Inspect(e, func(n ast.Node) bool {
		if literal, ok := n.(*ast.BasicLit); ok {
			if s, err := strconv.Unquote(literal.Value); err == nil {
				out = append(out, s)
			}
		}
		return true
	})
	return out
}
