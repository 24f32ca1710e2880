package rules

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"sallyport/rules/iptables"
	"sallyport/rules/plan"
)

// lockWait is how many seconds to wait for another program that holds the xtables lock.
const lockWait = "5"

// A flavour is the set of commands of one backend for one family.
type flavour struct {
	backend Backend
	family  plan.Family
	command string // such as ip6tables-nft: beside it are …-restore and …-save
	// mute is told the process that is about to change rules, and 0 when it has; nil where no one watches.
	mute func(pid int) error
	// keepPass has Remove leave what a pass made.
	keepPass bool
}

// findFlavour looks up the commands of a backend, or for BackendAuto of whichever one the command iptables is.
func findFlavour(b Backend, f plan.Family) (flavour, error) {
	const advice = `install iptables ("apt-get install iptables") and see that its folder, mostly /usr/sbin, is in PATH`
	plain := commandOf(f)
	if b == BackendAuto {
		var err error
		if b, err = backendOf(plain); err != nil {
			return flavour{}, fmt.Errorf("find %s: %w: %s", plain, err, advice)
		}
	}
	// The plain names can be switched one by one (update-alternatives), so their flavour is not taken for granted.
	for _, command := range []string{plain + "-" + string(b), plain} {
		got, err := backendOf(command + "-restore")
		if err == nil && got == b {
			return flavour{backend: b, family: f, command: command}, nil
		}
	}
	return flavour{}, fmt.Errorf("find %s: no %s-restore of backend %s: %s", plain, plain, b, advice)
}

// commandOf is the command of a family, without a backend.
func commandOf(f plan.Family) string {
	if f == plan.IPv4 {
		return "iptables"
	}
	return "ip6tables"
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

// without is the remnant but for a hook and its chain.
func (r remnant) without(h iptables.Hook) remnant {
	return remnant{
		chains: slices.DeleteFunc(slices.Clone(r.chains), func(name string) bool { return name == h.To }),
		jumps:  slices.DeleteFunc(slices.Clone(r.jumps), func(line string) bool { return line == h.Line() }),
	}
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
	if used, err := f.inUse(""); err != nil || !used {
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

// Alone says whether the filter table has the chain that remembers that forwarding was off before us.
func (f flavour) Alone(ctx context.Context, family plan.Family) (bool, error) {
	if f.family != family {
		return false, nil
	}
	if used, err := f.inUse("filter"); err != nil || !used {
		return false, err
	}
	out, err := f.save(ctx, "-t", "filter")
	return slices.Contains(parseSave(out)["filter"].chains, iptables.AloneChain), err
}

// Remove removes what is ours from all tables, and says what.
func (f flavour) Remove(ctx context.Context) (removed []string, err error) {
	found, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	for _, table := range slices.Sorted(maps.Keys(found)) {
		r := found[table]
		if f.keepPass && table == passHook.Table {
			r = r.without(passHook)
		}
		if len(r.chains)+len(r.jumps) == 0 {
			continue
		}
		if err := f.restore(ctx, r.remove(table)); err != nil {
			return removed, fmt.Errorf("remove rules from table %s: %w", table, err)
		}
		removed = append(removed, fmt.Sprintf("%d chains and %d jumps in table %s of %s", len(r.chains), len(r.jumps), table, f.command))
	}
	return removed, nil
}

// inUse says whether a backend has a table, or with no name any. Asking iptables-legacy itself for one would make it.
func (f flavour) inUse(table string) (bool, error) {
	if f.backend != BackendLegacy {
		return true, nil
	}
	file := map[plan.Family]string{plan.IPv4: "ip_tables_names", plan.IPv6: "ip6_tables_names"}[f.family]
	names, err := os.ReadFile("/proc/thread-self/net/" + file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the kernel has no ip_tables, or not yet
	}
	if err != nil {
		return false, fmt.Errorf("find out whether %s holds rules, which needs root: %w", f.command, err)
	}
	return len(names) > 0 && (table == "" || slices.Contains(strings.Fields(string(names)), table)), nil
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
