package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// allowed is the package table of ARCHITECTURE.md: what each package may import from this module. "*" is everything.
// bench is outside of the product and may use any of it.
var allowed = map[string][]string{
	"watcher/model":         {},
	"watcher/objects":       {},
	"watcher":               {"watcher/objects"},
	"watcher/translate":     {"watcher/objects", "watcher/model"},
	"watcher/reach":         {"watcher/model"},
	"watcher/status":        {"watcher/model"},
	"lb":                    {"watcher/model"},
	"rules":                 {"rules/plan", "rules/iptables", "rules/nftables", "rules/conntrack", "watcher/model"},
	"rules/plan":            {"watcher/model"},
	"rules/iptables":        {"rules/plan", "watcher/model"},
	"rules/nftables":        {"rules/plan", "watcher/model"},
	"rules/conntrack":       {"watcher/model"},
	"rules/scenario":        {"watcher/model"},
	"rules/nftables/trace":  {},
	"rules/netlab":          {},
	"gateway":               {"gateway/stream", "gateway/route", "gateway/balance", "watcher/model"},
	"gateway/stream":        {"gateway/balance", "watcher/model"},
	"gateway/route":         {"watcher/model"},
	"gateway/balance":       {"watcher/model"},
	"cmd/sallyport":         {"*"},
	"cmd/sallyport/admin":   {"*"},
	"cmd/sallyport/config":  {"lb", "watcher/objects", "watcher/model"},
	"cmd/sallyport/demo":    {"watcher/objects"},
	"cmd/sallyport/systemd": {},
	"cmd/sallyport/explain": {"gateway/route", "lb", "watcher/model"},
}

// stdOnly are the packages that import the standard library and nothing else.
var stdOnly = []string{"watcher/model"}

func TestPackagesImportWhatTheTableAllows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "sallyport/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], "sallyport/")
		if strings.HasPrefix(pkg, "bench") {
			continue
		}
		seen[pkg] = true
		checkImports(t, pkg, fields[1:])
	}
	for pkg := range allowed {
		if !seen[pkg] {
			t.Errorf("%s is in the table but not in the module", pkg)
		}
	}
}

func checkImports(t *testing.T, pkg string, imports []string) {
	list, known := allowed[pkg]
	if !known {
		t.Errorf("%s is not in the table: add it here and to ARCHITECTURE.md, with what it may import", pkg)
		return
	}
	for _, i := range imports {
		own, isOwn := strings.CutPrefix(i, "sallyport/")
		switch {
		case isOwn && !slices.Contains(list, own) && !slices.Contains(list, "*"):
			t.Errorf("%s imports %s, which the table does not allow", pkg, own)
		case !isOwn && strings.Contains(i, ".") && slices.Contains(stdOnly, pkg):
			t.Errorf("%s imports %s: only the standard library is allowed there", pkg, i)
		}
	}
}
