package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages are what people read, by their path from here.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"../../*.md", "../../deploy/*.md", "../../rules/*.md", "../../bench/lab/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no pages at %s: %v", pattern, err)
		}
		all = append(all, found...)
	}
	return all
}

func TestLinksBetweenPagesLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`) // one with a colon leads out of here
	links := 0
	for _, page := range pages(t) {
		data, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(data, -1) {
			links++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), string(m[1]))); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
	if links < 20 {
		t.Errorf("found only %d links", links)
	}
}

// TestCommandsOnPagesAreTrue finds each command of Sallyport that the pages tell people to type, and its flags.
func TestCommandsOnPagesAreTrue(t *testing.T) {
	var lines []string
	for _, page := range pages(t) {
		lines = append(lines, namesIn(t, "(?m)(?:^ {4,}|`|&& |-- \\$PWD/bin/)sallyport ((?:[a-z]+)(?: [^`#\\n&|…]*)?)", page)...)
	}
	if len(lines) < 15 {
		t.Fatalf("found only %q", lines)
	}
	for _, line := range lines {
		cmd, rest, err := newRoot().Find(strings.Fields(line))
		if err == nil {
			err = cmd.ParseFlags(slices.DeleteFunc(rest, func(word string) bool { return word == "--help" }))
		}
		if err != nil || !cmd.HasParent() {
			t.Errorf("sallyport %s: %v", line, err)
		}
	}
}

// TestKeysOnPagesAreTrue finds each key of the configuration that a page names in the table of CONFIGURATION.md, which is
// held to the code.
func TestKeysOnPagesAreTrue(t *testing.T) {
	documented := namesIn(t, "(?m)^\\| `([a-z][^`/]*)` \\|", "../../deploy/CONFIGURATION.md")
	used := namesIn(t, "`((?:edge|l4|l7|status|clusters|loadBalancer)[.\\[][a-zA-Z.\\[\\]]+)(?:: [^`]*)?`", pages(t)...)
	if len(documented) < 20 || len(used) < 20 {
		t.Fatalf("found only %d keys, %d of them documented", len(used), len(documented))
	}
	notKeys := []string{"status.loadBalancer", "status.conditions", "edge.go"} // fields of Kubernetes' objects, a file
	for _, key := range used {
		if !slices.Contains(documented, key) && !slices.Contains(notKeys, key) {
			t.Errorf("%s is no key", key)
		}
	}
}
