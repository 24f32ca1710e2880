package deb

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const top = "../.."

// need skips the test where a command is missing, unless the tests of the package were asked for.
func need(t *testing.T, command string) {
	t.Helper()
	_, err := exec.LookPath(command)
	switch {
	case err == nil:
	case os.Getenv("SALLYPORT_PACKAGE") == "required":
		t.Fatal(err)
	default:
		t.Skipf("without %s; make package-test installs it", command)
	}
}

// TestTheUnitIsConfined holds the unit, and what the drop-ins make of it, to systemd's own measure: 3.0 or less.
func TestTheUnitIsConfined(t *testing.T) {
	need(t, "systemd-analyze")
	dropIns, err := filepath.Glob(top + "/deploy/systemd/*.conf")
	if err != nil || len(dropIns) == 0 {
		t.Fatalf("no drop-ins: %v", err)
	}
	unit := read(t, "deploy/systemd/sallyport.service")
	for _, dropIn := range append(dropIns, "") {
		t.Run(filepath.Base(dropIn), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sallyport.service")
			text := unit
			if dropIn != "" {
				text += "\n" + read(t, strings.TrimPrefix(dropIn, top))
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=30", file).CombinedOutput()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// TestTheManualPageIsWhole compares it with the command line: each command is in it, and mandoc takes it without a warning.
func TestTheManualPageIsWhole(t *testing.T) {
	need(t, "mandoc")
	program := filepath.Join(t.TempDir(), "sallyport")
	output(t, "go", "build", "-o", program, "sallyport/cmd/sallyport")
	page := output(t, top+"/deploy/debian/man", program)
	file := filepath.Join(t.TempDir(), "sallyport.8")
	if err := os.WriteFile(file, []byte(page), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mandoc", "-Tlint", "-W", "warning", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	seen := 0
	for line := range strings.Lines(output(t, program, "__completeNoDesc", "")) {
		command := strings.TrimSpace(line)
		if strings.HasPrefix(command, ":") || command == "help" || command == "completion" {
			continue
		}
		seen++
		if !strings.Contains(page, "\n.Ss sallyport "+command+"\n") {
			t.Errorf("%s is not in the manual page", command)
		}
	}
	if seen < 5 {
		t.Errorf("only %d commands were found", seen)
	}
}

// TestTheImageCopiesWhatIsThere reads the Containerfile, which nothing here can build.
func TestTheImageCopiesWhatIsThere(t *testing.T) {
	copied := 0
	lines := bufio.NewScanner(strings.NewReader(read(t, "deploy/image/Containerfile")))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[0] != "COPY" || strings.HasPrefix(fields[1], "--from=") {
			continue
		}
		for _, source := range fields[1 : len(fields)-1] {
			copied++
			if _, err := os.Stat(filepath.Join(top, source)); err != nil {
				t.Error(err)
			}
		}
	}
	if copied < 3 {
		t.Errorf("only %d files are copied", copied)
	}
}

// TestThePackageNamesTheKubeconfig holds the sample configuration to the line that the package changes in it.
func TestThePackageNamesTheKubeconfig(t *testing.T) {
	sed := regexp.MustCompile(`(?m)^sed -i '([^']+)'.*sallyport\.yaml"$`).FindStringSubmatch(read(t, "deploy/debian/build"))
	if sed == nil {
		t.Fatal("deploy/debian/build does not change the sample")
	}
	if got := output(t, "sed", sed[1], top+"/deploy/sallyport.yaml"); !strings.Contains(got, "\nclusters:\n- kubeconfig: /etc/sallyport/kubeconfig\n") {
		t.Errorf("the package's configuration names no kubeconfig:\n%s", got)
	}
}

// read returns a file of the sources, by its name from the top.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// output is what a command prints, which must succeed.
func output(t *testing.T, command string, args ...string) string {
	t.Helper()
	cmd := exec.Command(command, args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v", command, args, err)
	}
	return string(out)
}
