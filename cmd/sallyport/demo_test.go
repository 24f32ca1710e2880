package main

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asSallyport makes the test binary behave as the program, so that tests run the real main.
const asSallyport = "SALLYPORT_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asSallyport) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program prepares the program with args.
func program(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), asSallyport+"=1")
	return cmd
}

// TestDemoLinesWork starts the demo and types every line that it prints.
func TestDemoLinesWork(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := program(ctx, "demo", "--address", "127.0.7.1", "--admin-address", "127.0.7.1:9440",
		"--socket", filepath.Join(t.TempDir(), "admin.sock"))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := commands(bufio.NewScanner(out))
	if len(lines) != 7 {
		t.Fatalf("the demo prints %d lines to type, want 7: %q", len(lines), lines)
	}
	for i, want := range []string{`^hostnames-\d\n$`, `^hostnames-\d\n$`, `^HTTP/1.1 503 `, `^HTTP/1.1 404 `, `^hostnames-\d\n$`, `hostnames`, `sallyport_snapshot_generation 1\n`} {
		got := typed(ctx, t, lines[i], i == 0)
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s\nprints %q\nwant %s", lines[i], got, want)
		}
	}
	pods := map[string]bool{}
	for range 9 {
		pods[typed(ctx, t, lines[0], false)] = true
	}
	if len(pods) != 3 {
		t.Errorf("the NodePort answers from %d pods, want 3: %v", len(pods), pods)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// commands returns the lines to type up to the end of what the demo prints at start.
func commands(s *bufio.Scanner) []string {
	var lines []string
	for s.Scan() {
		if line := strings.TrimSpace(s.Text()); strings.HasPrefix(line, "curl ") || strings.Contains(line, " explain ") {
			line, _, _ = strings.Cut(line, "  #")
			lines = append(lines, line)
		} else if strings.HasPrefix(line, "Ctrl-C") {
			break
		}
	}
	return lines
}

// typed runs one line in a shell. A patient curl tries again while the demo is starting.
func typed(ctx context.Context, t *testing.T, line string, patient bool) string {
	t.Helper()
	options := "curl -sS "
	if patient {
		options += "--retry 20 --retry-connrefused --retry-delay 1 "
	}
	shell := exec.CommandContext(ctx, "sh", "-c", strings.Replace(line, "curl ", options, 1))
	shell.Env = append(os.Environ(), asSallyport+"=1")
	out, err := shell.Output()
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return string(out)
}
