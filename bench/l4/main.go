// Command l4 compares Sallyport's kernel dataplanes with real kube-proxies, in one run on one machine.
//
// Each contender has a network namespace of its own as an edge between one client and one node, and the same cluster to
// serve. README.md says what is measured and how; the results go to bench/results.
//
//	go run ./bench/l4
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bench/lab/build"
	"sallyport/bench/lab/network"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := command(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "l4:", err)
		os.Exit(1)
	}
}

// options are the command's flags.
type options struct {
	plan      plan
	only      string // part of the names of the contenders to run
	sallyport string // the binary; empty: built from this source tree
	out       string
	// kubeProxyMost is where kube-proxy's iptables mode stops: from nothing, 10,000 Services take it minutes, and more of them hours.
	kubeProxyMost int
}

// complete is the plan of a full run: it takes about 20 minutes, a third of which kube-proxy's iptables mode needs to
// program 10,000 Services once. Between two changes lies more than kube-proxy's least time between two syncs, 1 s, so
// that no change waits for the one before.
var complete = plan{
	sizes: []int{1, 1000, 10_000, 30_000}, endpoints: 5, starts: 3, rounds: 20, connections: 200,
	changes: 20, changeTime: 25 * time.Second, changeGap: 1100 * time.Millisecond, churnAt: 10_000, churnTime: 30 * time.Second, flows: 200,
	failoverFlows: 2000,
}

func parse(args []string) (options, error) {
	o := options{plan: complete}
	f := flag.NewFlagSet("l4", flag.ContinueOnError)
	sizes := f.String("services", "1,1000,10000,30000", "numbers of Services, ascending")
	f.StringVar(&o.only, "only", "", "run only contenders whose `name` has this in it")
	f.StringVar(&o.sallyport, "sallyport", "", "`path` of the binary (default: built from this source tree)")
	f.StringVar(&o.out, "out", "bench/results", "`folder` for l4.md and l4.svg")
	f.IntVar(&o.kubeProxyMost, "kube-proxy-iptables", 10_000, "most Services that kube-proxy's iptables mode is run with")
	f.IntVar(&o.plan.starts, "starts", o.plan.starts, "starts from nothing; one where that takes more than 30 s")
	f.IntVar(&o.plan.rounds, "rounds", o.plan.rounds, "rounds of connections")
	f.IntVar(&o.plan.changes, "changes", o.plan.changes, "changes of an endpoint, at most")
	f.IntVar(&o.plan.churnAt, "churn-at", o.plan.churnAt, "number of Services at which changes are measured under churn, too")
	f.IntVar(&o.plan.failoverFlows, "failover-flows", o.plan.failoverFlows, "flows through an edge that dies")
	f.DurationVar(&o.plan.churnTime, "churn-time", o.plan.churnTime, "how long that goes on")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	var err error
	o.plan.sizes, err = parseSizes(*sizes)
	return o, err
}

func parseSizes(list string) ([]int, error) {
	var sizes []int
	for field := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 || n > 100_000 {
			return nil, fmt.Errorf("--services: %q is not a number from 1 to 100000", field)
		}
		sizes = append(sizes, n)
	}
	if !slices.IsSorted(sizes) {
		return nil, fmt.Errorf("--services: %s is not ascending", list)
	}
	return sizes, nil
}

// command measures and writes the results.
func command(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := requirements(); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	// The API servers' objects live in this process; collecting them often would disturb what is timed here.
	debug.SetGCPercent(400)
	r := report{started: time.Now(), arguments: args, machine: describe(ctx)}
	b, err := measure(ctx, o, "bench-l4", log)
	if err != nil {
		return err
	}
	r.plan, r.results, r.routing, r.left, r.failovers = o.plan, b.results, b.routing, b.left, b.failovers
	r.took = time.Since(r.started)
	if err := r.write(o.out); err != nil {
		return err
	}
	log.Info("done", "took", r.took.Round(time.Second), "results", filepath.Join(o.out, "l4.md"))
	return nil
}

// requirements says what is missing to run, and how to get it.
func requirements() error {
	err := network.Requirements()
	for command, pkg := range map[string]string{"nft": "nftables", "iptables-legacy": "iptables", "iptables-nft": "iptables"} {
		if _, missing := exec.LookPath(command); missing != nil {
			err = errors.Join(err, fmt.Errorf("the benchmark misses %s: apt-get install %s", command, pkg))
		}
	}
	return err
}

// measure builds the site, runs the plan on it and removes the site, also when ctx ends before.
func measure(ctx context.Context, o options, name string, log *slog.Logger) (b *bench, err error) {
	unlock, err := lock(name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := os.MkdirTemp("", name+"-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w (logs in %s)", err, dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	contenders, left, err := candidates(ctx, o, dir, log)
	if err != nil {
		return nil, err
	}
	s, err := newSite(name, edgesFor(len(contenders)), dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if b, err = newBench(o.plan, s, contenders, dir, log); err != nil {
		return nil, err
	}
	b.left = left
	err = errors.Join(b.run(ctx, contenders), b.close())
	if err != nil || o.plan.failoverFlows == 0 {
		return b, err
	}
	if err := s.close(); err != nil {
		return b, err
	}
	b.failovers, err = failovers(ctx, contenders, o.plan.failoverFlows, name, dir, log)
	return b, err
}

// lock keeps a second run from removing what the first one has built. The kernel gives it back when the process ends.
func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(os.TempDir(), name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the benchmark: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another run of the benchmark has %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// candidates are the contenders that can be run here, and those that cannot, with the reason.
func candidates(ctx context.Context, o options, dir string, log *slog.Logger) (can []contender, left []string, err error) {
	programs, err := build.All(ctx, log)
	if err != nil {
		return nil, nil, err
	}
	binary := o.sallyport
	if binary == "" {
		binary = filepath.Join(dir, "sallyport")
		if err := build.Command(ctx, "sallyport/cmd/sallyport", binary); err != nil {
			return nil, nil, err
		}
	}
	for _, c := range []contender{
		kubeProxy{programs["kube-proxy"], "iptables", o.kubeProxyMost},
		kubeProxy{programs["kube-proxy"], "nftables", 0},
		sallyport{binary: binary, dataplane: "iptables", backend: "nft"},
		sallyport{binary: binary, dataplane: "iptables", backend: "legacy"},
		sallyport{binary: binary, dataplane: "nftables"},
	} {
		if !strings.Contains(c.name(), o.only) {
			continue
		}
		if s, ok := c.(sallyport); ok {
			if why := s.refused(ctx, dir); why != "" {
				left = append(left, c.name()+": "+why)
				continue
			}
		}
		can = append(can, c)
	}
	if len(can) == 0 {
		err = fmt.Errorf("--only: no contender has %q in its name", o.only)
	}
	return can, left, err
}

// refused says why sallyport does not take its configuration; nothing if it does.
func (s sallyport) refused(ctx context.Context, dir string) string {
	file, kubeconfig := filepath.Join(dir, "check.yaml"), filepath.Join(dir, "check.kubeconfig")
	err := errors.Join(
		os.WriteFile(kubeconfig, fmt.Appendf(nil, kubeconfigFormat, "http://127.0.0.1"), 0o600),
		os.WriteFile(file, []byte(s.config(kubeconfig)), 0o600),
	)
	if err != nil {
		return err.Error()
	}
	if out, err := exec.CommandContext(ctx, s.binary, "check", "--config", file).CombinedOutput(); err != nil {
		return strings.TrimSpace(string(out))
	}
	return ""
}
