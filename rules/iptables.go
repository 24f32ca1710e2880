package rules

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"sallyport/rules/iptables"
)

// lockWait is how many seconds to wait for another program that holds the xtables lock.
const lockWait = "5"

// A flavour is the set of commands of one backend.
type flavour struct {
	backend Backend
	command string // such as iptables-nft: beside it are …-restore and …-save
	// mute is told the process that is about to change rules, and 0 when it has; nil where no one watches.
	mute func(pid int) error
}

// findFlavour looks up the commands of a backend, or for BackendAuto of whichever one the command iptables is.
func findFlavour(b Backend) (flavour, error) {
	const advice = `install iptables ("apt-get install iptables") and see that its folder, mostly /usr/sbin, is in PATH`
	if b == BackendAuto {
		var err error
		if b, err = backendOf("iptables"); err != nil {
			return flavour{}, fmt.Errorf("find iptables: %w: %s", err, advice)
		}
	}
	// The plain names can be switched one by one (update-alternatives), so their flavour is not taken for granted.
	for _, command := range []string{"iptables-" + string(b), "iptables"} {
		got, err := backendOf(command + "-restore")
		if err == nil && got == b {
			return flavour{backend: b, command: command}, nil
		}
	}
	return flavour{}, fmt.Errorf("find iptables: no iptables-restore of backend %s: %s", b, advice)
}

// backendOf asks a command of iptables for its flavour; those before 1.8 are legacy and do not say so.
func backendOf(command string) (Backend, error) {
	out, err := exec.Command(command, "--version").Output()
	switch {
	case err != nil:
		return "", err
	case bytes.Contains(out, []byte("nf_tables")):
		return BackendNFT, nil
	default:
		return BackendLegacy, nil
	}
}

// checkUser fails where a backend would not work for this user, whatever its capabilities.
func (f flavour) checkUser() error {
	if f.backend == BackendLegacy && os.Geteuid() != 0 {
		return errors.New("iptables-legacy needs root: run as root, or set l4.iptablesBackend: nft")
	}
	return nil
}

// restore applies one table's change, whole or not at all. It dies with us: what a successor writes must stay.
func (f flavour) restore(ctx context.Context, change []byte) error {
	cmd := exec.CommandContext(ctx, f.command+"-restore", "--noflush", "-w", lockWait)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := f.feed(cmd, change); err != nil {
		return fmt.Errorf("%s-restore: %w: %s", f.command, err, explain(stderr.String(), change))
	}
	return nil
}

// feed runs a command, which gets its input when it is muted: it changes nothing before.
func (f flavour) feed(cmd *exec.Cmd, input []byte) error {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if f.mute != nil {
		err = f.mute(cmd.Process.Pid)
		defer func() { _ = f.mute(0) }() // at worst the next one's changes are missed until it is muted itself
	}
	if err == nil {
		_, _ = stdin.Write(input) // it fails if the command ends early, and then Wait says why
	}
	return errors.Join(err, stdin.Close(), cmd.Wait())
}

var (
	failedLine = regexp.MustCompile(`line:? (\d+)`)
	seedOption = regexp.MustCompile(`--hmark-rnd \w+`)
)

// explain gives what iptables-restore complained about, with the lines around the one that it names. Legacy names the
// line of COMMIT for what the kernel refuses. The hash seed is a secret and does not get out.
func explain(stderr string, input []byte) string {
	complaint, _, _ := strings.Cut(strings.TrimSpace(stderr), "\nTry `")
	complaint = strings.Join(strings.Fields(complaint), " ")
	m := failedLine.FindStringSubmatch(complaint)
	if m == nil {
		return complaint
	}
	n, err := strconv.Atoi(m[1])
	lines := strings.Split(string(input), "\n")
	if err != nil || n < 1 || n > len(lines) {
		return complaint
	}
	var near []string
	for i := max(0, n-3); i < min(len(lines), n+2); i++ {
		near = append(near, fmt.Sprintf("%d: %s", i+1, lines[i]))
	}
	return complaint + ", near " + seedOption.ReplaceAllString(strconv.Quote(strings.Join(near, "; ")), "--hmark-rnd …")
}

// A remnant is what one table holds of ours.
type remnant struct {
	chains []string // names
	jumps  []string // rules of other chains that lead to them, as "-A CHAIN …"
}

// remove gives the input of iptables-restore that removes the remnant.
func (r remnant) remove(table string) []byte {
	return iptables.Table{Name: table}.Change(nil, r.chains, deletions(r.jumps))
}

func deletions(jumps []string) []string {
	var lines []string
	for _, j := range jumps {
		lines = append(lines, "-D"+strings.TrimPrefix(j, "-A"))
	}
	return lines
}

// find reads what the kernel holds of ours, by table. It prints whole tables, which takes seconds with many rules:
// it is for the start and for cleaning up.
func (f flavour) find(ctx context.Context) (map[string]remnant, error) {
	if used, err := f.inUse(); err != nil || !used {
		return map[string]remnant{}, err
	}
	out, err := f.save(ctx)
	if err != nil {
		return nil, err
	}
	return parseSave(out), nil
}

// save prints all tables, or those that args say.
func (f flavour) save(ctx context.Context, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, f.command+"-save", args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	if err != nil {
		return nil, fmt.Errorf("%s-save: %w", f.command, err)
	}
	return out, nil
}

// inUse says whether a backend has a table. Asking iptables-legacy itself for one would make it.
func (f flavour) inUse() (bool, error) {
	if f.backend != BackendLegacy {
		return true, nil
	}
	names, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the kernel has no ip_tables, or not yet
	}
	if err != nil {
		return false, fmt.Errorf("find out whether iptables-legacy holds rules, which needs root: %w", err)
	}
	return len(names) > 0, nil
}

var (
	quoted     = regexp.MustCompile(`"(\\.|[^"\\])*"`)
	jumpToOurs = regexp.MustCompile(` -[jg] ` + iptables.Prefix)
)

// leadsToOurs says whether a rule, as iptables-save prints it, jumps or goes to one of our chains. A comment may say
// what it likes.
func leadsToOurs(line string) bool { return jumpToOurs.MatchString(quoted.ReplaceAllString(line, "")) }

// parseSave picks from the output of iptables-save what is ours.
func parseSave(out []byte) map[string]remnant {
	found := map[string]remnant{}
	table := ""
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := lines.Text()
		r := found[table]
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
			continue
		case strings.HasPrefix(line, ":"+iptables.Prefix):
			name, _, _ := strings.Cut(line[1:], " ")
			r.chains = append(r.chains, name)
		case strings.HasPrefix(line, "-A ") && !strings.HasPrefix(line, "-A "+iptables.Prefix) && leadsToOurs(line):
			r.jumps = append(r.jumps, line)
		default:
			continue
		}
		found[table] = r
	}
	return found
}
