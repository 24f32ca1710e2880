package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestPinned(t *testing.T) {
	for _, tt := range []struct{ name, gomod, want string }{
		{"in a block", "require (\n\texample.com/a v1.2.3 // indirect\n)\n", "v1.2.3"},
		{"on its own line", "require example.com/a v1.2.3\n", "v1.2.3"},
		{"a longer path does not count", "require example.com/a/b v1.2.3\n", ""},
		{"neither does a tool", "tool example.com/a\n", ""},
		{"nor a replacement", "replace (\n\texample.com/a => example.com/a v0.1.0\n)\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := pinned(tt.gomod, "example.com/a"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestKeyFollowsThePins(t *testing.T) {
	dir := t.TempDir()
	write := func(gomod string) {
		t.Helper()
		for name, text := range map[string]string{"go.mod": gomod, "go.sum": ""} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	m := module{folder: "thing", pin: "example.com/a"}
	keys := map[string]bool{}
	for _, gomod := range []string{
		"require example.com/a v1.0.0\n",
		"require example.com/a v1.0.1\n",
		"require example.com/a v1.0.1\nrequire example.com/b v0.1.0\n",
	} {
		write(gomod)
		key, _, err := m.key(dir)
		if err != nil {
			t.Fatal(err)
		}
		keys[key] = true
	}
	if len(keys) != 3 {
		t.Errorf("three different go.mod files gave the keys %v", keys)
	}
	write("require example.com/b v0.1.0\n")
	if _, _, err := m.key(dir); err == nil || !strings.Contains(err.Error(), "does not require example.com/a") {
		t.Errorf("go.mod without the pin: got error %v", err)
	}
}

// What a command is made of decides whether go test runs the tests of the command again.
func TestSources(t *testing.T) {
	folders, err := sources(t.Context(), LabCommand)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{".", "bench/lab", "bench/lab/agent", "bench/lab/build"} {
		if !slices.Contains(folders, filepath.Join(root, want)) {
			t.Errorf("%s is not in %q", want, folders)
		}
	}
	for _, folder := range folders {
		if rest, ok := strings.CutPrefix(folder, root); !ok || strings.HasPrefix(rest, "/gateway") {
			t.Errorf("%s is no part of the lab", folder)
		}
	}
}

// The nested modules of this folder must name what modules expects of them.
func TestNestedModulesArePinned(t *testing.T) {
	for _, m := range modules {
		if _, _, err := m.key(m.folder); err != nil {
			t.Error(err)
		}
	}
}

func TestKubernetesVersionFlags(t *testing.T) {
	got := kubernetesVersion("v1.36.3")
	for _, want := range []string{"gitVersion=v1.36.3", "gitMajor=1 ", "gitMinor=36 "} {
		if !strings.Contains(got, "-X k8s.io/component-base/version."+want) {
			t.Errorf("%s is not in %q", want, got)
		}
	}
}
