package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// A report is what the results say about themselves and the machine.
type report struct {
	plan      plan
	results   []*result
	routing   []bareResult
	failovers []failover
	left      []string // contenders that were not run, and why
	machine   []string
	arguments []string
	started   time.Time
	took      time.Duration
}

// describe says what the machine is, one fact a line.
func describe(ctx context.Context) []string {
	var facts []string
	for _, f := range []struct {
		name    string
		command []string
	}{
		{"kernel", []string{"uname", "-srm"}},
		{"iptables", []string{"iptables", "--version"}},
		{"nftables", []string{"nft", "--version"}},
		{"load before the run", []string{"cut", "-d ", "-f1-3", "/proc/loadavg"}},
	} {
		out, err := exec.CommandContext(ctx, f.command[0], f.command[1:]...).Output()
		if err != nil {
			out = []byte(err.Error())
		}
		facts = append(facts, f.name+": "+strings.TrimSpace(string(out)))
	}
	return append([]string{"processor: " + field("/proc/cpuinfo", "model name"), fmt.Sprintf("processors: %d", runtime.NumCPU()),
		"memory: " + field("/proc/meminfo", "MemTotal")}, facts...)
}

// field is the first value of a "name : value" line.
func field(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// write writes l4.md and l4.svg into a folder, which is made.
func (r report) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "l4.svg"), r.plot(), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "l4.md"), r.markdown(), 0o644)
}

// markdown is the whole page.
func (r report) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# L4: Sallyport and kube-proxy\n\n")
	fmt.Fprintf(&b, "`make bench-l4`, here as `go run ./bench/l4 %s`, on %s; it took %v. [How it is measured](../l4/README.md).\n\n",
		strings.Join(r.arguments, " "), r.started.UTC().Format("2006-01-02 15:04 MST"), r.took.Round(time.Second))
	for _, fact := range append(r.machine, "kube-proxy: v1.36.3, its defaults", fmt.Sprintf("endpoints: %d a Service, all different", r.plan.endpoints)) {
		fmt.Fprintf(&b, "- %s\n", fact)
	}
	for _, l := range r.left {
		fmt.Fprintf(&b, "- not run: %s\n", l)
	}
	fmt.Fprintf(&b, "\n![connect time and time from nothing, against the number of Services](l4.svg)\n")
	sections := []func(*bytes.Buffer){r.bars, r.connects, r.unrelated, r.programmings, r.changes, r.processes}
	if len(r.failovers) > 0 {
		sections = append(sections, r.deaths)
	}
	for _, section := range sections {
		b.WriteByte('\n')
		section(&b)
	}
	return b.Bytes()
}

// table writes a Markdown table; rows are made of cells.
func table(b *bytes.Buffer, header []string, rows [][]string) {
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	line(header)
	line(append([]string{"---"}, strings.Split(strings.Repeat("---: ", len(header)-1), " ")[:len(header)-1]...))
	for _, row := range rows {
		line(row)
	}
}

func (r report) connects(b *bytes.Buffer) {
	fmt.Fprintf(b, "## Connect time\n\nTCP handshake from the client through the edge to an endpoint, in µs: p50 / p99, to the first, middle and last Service in the "+
		"order of the rules. Beside them, in the same rounds, the same program with one Service; the ratio is of the worst p50 to that.\n\n")
	var rows [][]string
	for _, x := range r.results {
		rows = append(rows, []string{x.contender, count(x.services), micros(x.connect[0]), micros(x.connect[1]), micros(x.connect[2]), micros(x.nodePort),
			micros(x.reference), ratio(x.worst(), x.reference.p50)})
	}
	table(b, []string{"", "Services", "first", "middle", "last", "last node port", "1 Service", "ratio"}, rows)
}

func (r report) unrelated(b *bytes.Buffer) {
	fmt.Fprintf(b, "## Traffic that no Service has to do with\n\nTCP handshake in µs, p50 / p99: with a server behind the edge, and with one on the edge itself.\n\n")
	var rows [][]string
	for _, bare := range r.routing {
		rows = append(rows, []string{"no rules", count(bare.services), micros(bare.forwarded), "", micros(bare.local), ""})
		for _, x := range r.results {
			if x.services == bare.services {
				rows = append(rows, []string{x.contender, count(x.services), micros(x.forwarded), ratio(x.forwarded.p50, bare.forwarded.p50),
					micros(x.local), ratio(x.local.p50, bare.local.p50)})
			}
		}
	}
	table(b, []string{"", "Services", "forwarded", "ratio", "local", "ratio"}, rows)
}

func (r report) programmings(b *bytes.Buffer) {
	fmt.Fprintf(b, "## From nothing\n\nMedian of the starts, in seconds. *First connection* is from the start of the process until the first, the middle and the last Service "+
		"answer, reading the cluster included; *applied* what the program's own metrics say of it for the kernel; CPU is that of the process and its children.\n\n")
	var rows [][]string
	for _, x := range r.results {
		rows = append(rows, []string{x.contender, count(x.services), seconds(x.first()), seconds(x.applied()), seconds(x.cpu()), fmt.Sprint(len(x.starts))})
	}
	table(b, []string{"", "Services", "first connection", "applied", "CPU", "starts"}, rows)
}

func (r report) changes(b *bytes.Buffer) {
	fmt.Fprintf(b, "## One endpoint changes\n\nFrom the API server's event to the first connection that reaches the new endpoint, in ms; *churn*: while 20 endpoints a second "+
		"change elsewhere. kube-proxy leaves 1 s between two syncs.\n\n")
	var rows [][]string
	for _, x := range r.results {
		rows = append(rows, []string{x.contender, count(x.services), millis(x.change), fmt.Sprint(x.change.n), fmt.Sprint(x.changeCPU.Milliseconds()), millis(x.churn), fmt.Sprint(x.churn.n)})
	}
	table(b, []string{"", "Services", "p50 / p99", "changes", "CPU ms a change", "churn p50 / p99", "changes"}, rows)
}

func (r report) processes(b *bytes.Buffer) {
	fmt.Fprintf(b, "## The process\n\nMemory (VmRSS, and VmHWM, the most so far) after the changes, and the CPU time since the start with its children. *Survived*: of %d open connections "+
		"those that work on after `kill -9` of the process, and after its restart.\n\n", r.plan.flows)
	var rows [][]string
	for _, x := range r.results {
		rows = append(rows, []string{x.contender, count(x.services), megabytes(x.usage.resident), megabytes(x.usage.peak), seconds(x.usage.cpu), fmt.Sprint(x.survived)})
	}
	table(b, []string{"", "Services", "memory MB", "most MB", "CPU s", "survived"}, rows)
}

func (r report) deaths(b *bytes.Buffer) {
	fmt.Fprintf(b, "## The death of an edge\n\nThe machine of one edge goes away, and %v later another one has its VIPs and its %d SNAT addresses. Flows from %d clients, which send "+
		"a keepalive after %v; the last flow went on so long after the death.\n\n", deadFor, 4, failoverClients, keepAlive)
	var rows [][]string
	for _, f := range r.failovers {
		rows = append(rows, []string{f.name, fmt.Sprint(f.flows), fmt.Sprint(f.survived), fmt.Sprint(f.byKind[askEcho]),
			fmt.Sprint(f.byKind[askThink]), fmt.Sprint(f.byKind[askDownload]), seconds(f.worst)})
	}
	table(b, []string{"", "flows", "survived", "echo", "think time", "download", "last after s"}, rows)
}

// worst is the p50 of the place that is slowest.
func (x *result) worst() time.Duration {
	return max(x.connect[0].p50, x.connect[1].p50, x.connect[2].p50)
}

func (x *result) first() time.Duration {
	return x.medianStart(func(p programming) time.Duration { return p.first })
}

func (x *result) applied() time.Duration {
	return x.medianStart(func(p programming) time.Duration { return p.applied })
}

func (x *result) cpu() time.Duration {
	return x.medianStart(func(p programming) time.Duration { return p.cpu })
}

func (x *result) medianStart(of func(programming) time.Duration) time.Duration {
	var all []time.Duration
	for _, p := range x.starts {
		all = append(all, of(p))
	}
	return median(all)
}

func count(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func micros(s sample) string {
	return fmt.Sprintf("%.0f / %.0f", float64(s.p50)/1e3, float64(s.p99)/1e3)
}

func millis(s sample) string {
	if s.n == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f / %.0f", float64(s.p50)/1e6, float64(s.p99)/1e6)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

func megabytes(n int64) string { return fmt.Sprint(n >> 20) }

func ratio(a, b time.Duration) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", float64(a)/float64(b))
}
