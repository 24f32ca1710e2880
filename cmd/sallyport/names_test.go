package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryNameUnderSallyportIOIsDocumented holds the annotations and classes of CONFIGURATION.md to the code.
func TestEveryNameUnderSallyportIOIsDocumented(t *testing.T) {
	var files []string
	for _, folder := range []string{"translate", "status", "model"} {
		found, err := filepath.Glob("../../watcher/" + folder + "/*.go")
		if err != nil || len(found) == 0 {
			t.Fatalf("no sources found in %s: %v", folder, err)
		}
		files = append(files, found...)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, "_test.go") })
	code := namesIn(t, `"(sallyport\.io/[A-Za-z-]+)"`, files...)
	docs := namesIn(t, "`(sallyport\\.io/[A-Za-z-]+)`", "../../deploy/CONFIGURATION.md")
	if len(code) < 3 || !slices.Equal(code, docs) {
		t.Errorf("the code has %v, CONFIGURATION.md %v", code, docs)
	}
}

// namesIn lists what the pattern's group matches in the files, each once and ordered.
func namesIn(t *testing.T, pattern string, files ...string) []string {
	t.Helper()
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllSubmatch(data, -1) {
			names = append(names, string(m[1]))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
