package conntrack

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/rules/netlab"
)

func TestCapacity(t *testing.T) {
	for _, tt := range []struct {
		name   string
		memory uint64
		cores  int
		want   uint64
	}{
		{"small", 256 << 20, 1, 128 << 10},
		{"1 GiB", 1 << 30, 2, 256 << 10},
		{"4 GiB", 4 << 30, 4, 1 << 20},
		{"many cores", 1 << 30, 16, 512 << 10},
		{"large", 256 << 30, 64, 4 << 20},
	} {
		if got := capacity(tt.memory, tt.cores); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// sysctlFolder is a folder with the values of sysctls, 1 where none is given.
func sysctlFolder(t *testing.T, values map[string]string) string {
	folder := t.TempDir()
	for _, s := range settings(1 << 20) {
		path, value := filepath.Join(folder, s.name), values[s.name]
		if value == "" {
			value = "1"
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestSize(t *testing.T) {
	folder := sysctlFolder(t, map[string]string{
		"nf_conntrack_max":                     "4194304",
		"nf_conntrack_tcp_timeout_established": "432000",
		"nf_conntrack_acct":                    "0",
		"nf_conntrack_events":                  "2",
	})
	o := Options{Max: 1 << 20}
	unset, err := size(folder, o, false)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"nf_conntrack_buckets is 1, 262144", "close_wait is 1, 3600", "acct is 0, 1", "events is 2, 1"} {
		if i >= len(unset) || !strings.Contains(unset[i], want) {
			t.Errorf("Check tells %q, want %q at %d", unset, want, i)
		}
	}
	if unset, err := size(folder, o, true); len(unset) > 0 || err != nil {
		t.Errorf("Size: %q, %v", unset, err)
	}
	got := map[string]string{}
	for _, s := range settings(1 << 20) {
		text, err := os.ReadFile(filepath.Join(folder, s.name))
		if err != nil {
			t.Fatal(err)
		}
		got[s.name] = strings.TrimSpace(string(text))
	}
	for name, want := range map[string]string{
		"nf_conntrack_buckets":                 "262144",
		"nf_conntrack_max":                     "4194304", // never lowered
		"nf_conntrack_tcp_timeout_established": "432000",
		"nf_conntrack_tcp_timeout_close_wait":  "3600",
		"nf_conntrack_acct":                    "1",
		"nf_conntrack_events":                  "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %s, want %s", name, got[name], want)
		}
	}
}

func TestSizeOfNothing(t *testing.T) {
	if _, err := size(t.TempDir(), Options{}, true); err == nil || !strings.Contains(err.Error(), "nf_conntrack") {
		t.Errorf("got %v, want an error that names the module", err)
	}
}

func TestSizeInNamespace(t *testing.T) {
	ns := netlab.Namespace(t)
	netlab.In(t, ns, func() {
		o := Options{Max: 1 << 30} // more than any machine has
		before, err := Check(o)
		if err != nil {
			t.Fatal(err)
		}
		unset, err := Size(o)
		if err != nil {
			t.Fatal(err)
		}
		isSize := func(s string) bool { return strings.Contains(s, "_max is ") || strings.Contains(s, "_buckets is ") }
		if rest := slices.DeleteFunc(slices.Clone(unset), isSize); len(rest) > 0 || len(unset) != 2 {
			t.Errorf("Size could not set %q, want only the table's size", unset)
		}
		if len(before) <= len(unset) {
			t.Errorf("Check told %q before and Size %q", before, unset)
		}
		for _, name := range []string{"nf_conntrack_acct", "nf_conntrack_events"} {
			if got := strings.TrimSpace(netlab.Run(t, "sysctl", "-n", "net.netfilter."+name)); got != "1" {
				t.Errorf("%s is %s after Size", name, got)
			}
		}
	})
}

func TestLevel(t *testing.T) {
	var l level
	for _, step := range []struct {
		entries uint32
		changed bool
		full    bool
	}{{10, false, false}, {79, false, false}, {80, true, true}, {79, false, true}, {70, false, true}, {69, true, false}, {79, false, false}, {100, true, true}} {
		if changed := l.set(step.entries, 100); changed != step.changed || l.full != step.full {
			t.Errorf("%d of 100: changed %v, full %v; want %v, %v", step.entries, changed, l.full, step.changed, step.full)
		}
	}
	if l.set(5, 0); l.full {
		t.Error("a table of unknown size is full")
	}
}
