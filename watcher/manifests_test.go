package watcher

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func manifest(names ...string) string {
	var s string
	for _, n := range names {
		s += "---\napiVersion: v1\nkind: Service\nmetadata: {name: " + n + "}\n"
	}
	return s
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// names are the Services' names, in order.
func names(s Source) string {
	c, _ := s.Objects()
	var all []string
	for _, o := range c.Services {
		all = append(all, o.Name)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestManifestsFollowsChanges(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before map[string]string
		change func(t *testing.T, dir string)
		want   string
	}{
		{"a new file", map[string]string{"a.yaml": manifest("a")},
			func(t *testing.T, dir string) { write(t, filepath.Join(dir, "b.yaml"), manifest("b")) }, "a b"},
		{"a file rewritten in place", map[string]string{"a.yaml": manifest("a")},
			func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a.yaml"), manifest("a2")) }, "a2"},
		{"an editor writes another file and renames it", map[string]string{"a.yaml": manifest("a")}, func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, ".a.yaml.swp"), manifest("a2"))
			rename(t, filepath.Join(dir, ".a.yaml.swp"), filepath.Join(dir, "a.yaml"))
		}, "a2"},
		{"a file is removed", map[string]string{"a.yaml": manifest("a"), "b.yaml": manifest("b")},
			func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "b.yaml")) }, "a"},
		{"the folder is replaced, and the new one followed", map[string]string{"a.yaml": manifest("a")}, func(t *testing.T, dir string) {
			write(t, filepath.Join(dir+".new", "b.yaml"), manifest("b"))
			rename(t, dir, dir+".old")
			rename(t, dir+".new", dir)
			write(t, filepath.Join(dir, "c.yaml"), manifest("c"))
		}, "b c"},
		{"a broken file keeps its last good objects, and stops no other", map[string]string{"a.yaml": manifest("a")}, func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "a.yaml"), manifest("a2")+"---\nkind: [")
			write(t, filepath.Join(dir, "b.yaml"), manifest("b"))
		}, "a b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "manifests")
			for name, content := range tt.before {
				write(t, filepath.Join(dir, name), content)
			}
			log, lines := textLog()
			m := NewManifests(dir, testOptions(log))
			changes := start(t, m)
			eventually(t, changes, "read", ready(m))
			tt.change(t, dir)
			eventually(t, changes, tt.want, func() bool { return names(m) == tt.want })
			if c, _ := m.Objects(); c.Name != "east" {
				t.Errorf("cluster is called %q", c.Name)
			}
			if strings.Contains(tt.name, "broken") && !strings.Contains(lines.String(), filepath.Join(dir, "a.yaml")+":6") {
				t.Errorf("the log does not name the place: %s", lines)
			}
		})
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// TestManifestsFollowsConfigMapVolume swaps the link ..data, as kubelet does.
func TestManifestsFollowsConfigMapVolume(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "..1", "a.yaml"), manifest("a"))
	write(t, filepath.Join(dir, "..2", "a.yaml"), manifest("b"))
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/a.yaml", "a.yaml")
	log, _ := textLog()
	m := NewManifests(dir, testOptions(log))
	changes := start(t, m)
	eventually(t, changes, "a", func() bool { return names(m) == "a" })
	link("..2", "..data_tmp")
	rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
	eventually(t, changes, "b", func() bool { return names(m) == "b" })
}

// TestManifestsBrokenFromTheStart takes what is good of a file that never was without errors, also as it changes.
func TestManifestsBrokenFromTheStart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	write(t, file, manifest("a")+"---\nkind: [")
	log, lines := textLog()
	m := NewManifests(dir, testOptions(log))
	changes := start(t, m)
	eventually(t, changes, "a", func() bool { return names(m) == "a" })
	if !strings.Contains(lines.String(), "manifest not used") {
		t.Errorf("nothing in the log: %s", lines)
	}
	write(t, file, manifest("a", "b")+"---\nkind: [")
	eventually(t, changes, "a and b", func() bool { return names(m) == "a b" })
	write(t, file, manifest("b"))
	eventually(t, changes, "b", func() bool { return names(m) == "b" })
}

func TestManifestsOfOneFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.yaml")
	write(t, file, manifest("a"))
	log, _ := textLog()
	m := NewManifests(file, testOptions(log))
	changes := start(t, m)
	eventually(t, changes, "a", func() bool { return names(m) == "a" })
	write(t, file+".tmp", manifest("b"))
	rename(t, file+".tmp", file)
	eventually(t, changes, "b", func() bool { return names(m) == "b" })
}

// TestManifestsFolderAway removes the folder: the last good objects stay until it is back.
func TestManifestsFolderAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	write(t, filepath.Join(dir, "a.yaml"), manifest("a"))
	log, lines := textLog()
	m := NewManifests(dir, testOptions(log))
	changes := start(t, m)
	eventually(t, changes, "a", func() bool { return names(m) == "a" })
	rename(t, dir, dir+".away")
	eventually(t, tick(t), "the log tells", func() bool { return strings.Contains(lines.String(), "last good objects stay") })
	if got := names(m); got != "a" {
		t.Errorf("got %q", got)
	}
	write(t, filepath.Join(dir, "b.yaml"), manifest("b"))
	eventually(t, changes, "b", func() bool { return names(m) == "b" })
}

// TestManifestsParsesOnlyWhatChanged touches a file: its objects stay the very same, and what is wrong with it is not told
// again.
func TestManifestsParsesOnlyWhatChanged(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), manifest("a"))
	log, lines := textLog()
	m := NewManifests(dir, testOptions(log))
	changes := start(t, m)
	eventually(t, changes, "a", func() bool { return names(m) == "a" })
	before, _ := m.Objects()
	write(t, filepath.Join(dir, "a.yaml"), manifest("a")+"---\nkind: [")
	eventually(t, tick(t), "the broken file is told of", func() bool { return strings.Contains(lines.String(), "manifest broken") })
	write(t, filepath.Join(dir, "b.yaml"), manifest("b"))
	eventually(t, changes, "a and b", func() bool { return names(m) == "a b" })
	after, _ := m.Objects()
	if before.Services[0] != after.Services[0] || strings.Count(lines.String(), "manifest broken") != 1 {
		t.Errorf("a.yaml was parsed again: %s", lines)
	}
}

func TestManifestsMissing(t *testing.T) {
	log, _ := textLog()
	m := NewManifests(filepath.Join(t.TempDir(), "missing"), testOptions(log))
	if err := m.Run(context.Background(), func() {}); err == nil || !strings.Contains(err.Error(), "missing: no such file") {
		t.Errorf("got %v", err)
	}
}

// TestManifestsHealth breaks a file, and again while the folder is elsewhere, and mends both.
func TestManifestsHealth(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "manifests")
	file := filepath.Join(dir, "a.yaml")
	write(t, file, manifest("a"))
	log, _ := textLog()
	m := NewManifests(dir, testOptions(log))
	start(t, m)
	wants := func(what string, up bool, lastError string) {
		t.Helper()
		eventually(t, tick(t), what, func() bool {
			h := m.Health()
			return h.Up == up && strings.Contains(h.LastError, lastError) && (lastError != "" || h.LastError == "") && h.Server == dir
		})
	}
	wants("all is well", true, "")
	write(t, file, manifest("a")+"---\nkind: [")
	wants("the broken file is told of", true, file+":6")
	write(t, filepath.Join(dir, "b.yaml"), "kind: [")
	wants("both broken files are told of", true, "and 1 more")
	remove(t, filepath.Join(dir, "b.yaml"))
	rename(t, dir, dir+".away")
	wants("the folder is away", false, "no such file")
	rename(t, dir+".away", dir)
	wants("the file is still broken", true, file+":6")
	write(t, file, manifest("a"))
	wants("all is well again", true, "")
}
