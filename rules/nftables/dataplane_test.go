package nftables

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"sallyport/rules/netlab"
	"sallyport/rules/nftables/trace"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

// A kernel is a Dataplane in a namespace of its own.
type kernel struct {
	*Dataplane
	ns  netns.NsHandle
	log *strings.Builder
}

func newKernel(t testing.TB) *kernel {
	t.Helper()
	k := &kernel{ns: netlab.Namespace(t), log: new(strings.Builder)}
	netlab.In(t, k.ns, func() {
		var err error
		if k.Dataplane, err = New(Options{Log: slog.New(slog.NewTextHandler(k.log, nil))}); err != nil {
			t.Fatal(err)
		}
	})
	return k
}

// apply says whether anything was written.
func (k *kernel) apply(t testing.TB, p *plan.Plan) (changed bool) {
	t.Helper()
	netlab.In(t, k.ns, func() {
		var err error
		if changed, err = k.Apply(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	})
	return changed
}

// watches says whether Watch has begun.
func (k *kernel) watches() bool {
	k.changes.mu.Lock()
	defer k.changes.mu.Unlock()
	return k.changes.socket != nil
}

var expires = regexp.MustCompile(` expires \S+`)

// list is what the kernel holds, without what differs from one listing to the next: the order of elements, and how old they are.
func (k *kernel) list(t testing.TB) (lines []string) {
	t.Helper()
	netlab.In(t, k.ns, func() {
		for line := range strings.Lines(expires.ReplaceAllString(netlab.Run(t, "nft", "list", "ruleset"), "")) {
			for part := range strings.SplitSeq(strings.Trim(line, "\t\n "), ", ") {
				lines = append(lines, strings.Trim(strings.TrimPrefix(strings.TrimSuffix(part, ","), "elements = {"), " }"))
			}
		}
	})
	slices.Sort(lines)
	return slices.DeleteFunc(lines, func(line string) bool { return line == "" })
}

// TestChanges applies random plans one after the other: the kernel holds what it does if each is applied to nothing.
func TestChanges(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	k := newKernel(t)
	for round := range 15 {
		s := randomServices(r)
		for _, f := range plan.Families {
			p := plan.New(s, f, keepOptions())
			k.apply(t, p)
			if k.apply(t, plan.New(s, f, keepOptions())) {
				t.Fatalf("round %d: the same plan is written again", round)
			}
		}
		fresh := newKernel(t)
		for _, f := range plan.Families {
			fresh.renderers[f].marks = k.renderers[f].marks
			fresh.apply(t, plan.New(s, f, keepOptions()))
		}
		if got, want := k.list(t), fresh.list(t); !slices.Equal(got, want) {
			t.Fatalf("round %d: got\n%s\nwant\n%s", round, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if k.log.Len() > 0 {
		t.Errorf("changes failed: %s", k.log)
	}
}

// TestRendererKeeps has a Renderer render random plans one after the other, as if each were the first but for the marks that are given.
func TestRendererKeeps(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var k Renderer
	for round := range 200 {
		p := plan.New(randomServices(r), plan.Families[r.IntN(2)], keepOptions())
		fresh := Renderer{marks: k.marks}
		if got, want := k.Render(p), fresh.Render(p); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("round %d: got\n%v\nwant\n%v", round, got, want)
		}
	}
}

// randomServices makes some Services with anything that they may ask for, some of it as it was the time before.
func randomServices(r *rand.Rand) *model.Snapshot {
	s := scenario.Snapshot()
	s.Nodes[0].PodCIDRs = append(s.Nodes[0].PodCIDRs, netip.MustParsePrefix("2001:db8:1::/64"))
	for i := range 8 {
		if r.IntN(3) == 0 {
			continue
		}
		var ports []string
		for _, proto := range []string{"TCP", "UDP", "SCTP"}[:1+r.IntN(3)] {
			port := fmt.Sprintf("%s 80 %d:", proto, r.IntN(2)*(30000+i))
			for d := range []int{0, 1, 3, 12}[r.IntN(4)] {
				port += fmt.Sprintf(" 10.1.0.%d:80 [2001:db8:1::%d]:80", d+2, d+2)
			}
			ports = append(ports, port)
		}
		svc := scenario.Service(fmt.Sprint("s", i), fmt.Sprintf("198.51.100.%d 2001:db8:5::%d", 10+i, 10+i), ports...)
		for p := range svc.Ports { // of each family together, as translate has them
			slices.SortFunc(svc.Ports[p].Destinations, func(a, b model.Destination) int { return a.Addr.Compare(b.Addr) })
		}
		if r.IntN(3) == 0 {
			svc.SourceRanges = &model.SourceRanges{Prefixes: prefixes([]string{"192.0.2.0/24", "192.0.2.0/25 203.0.113.0/24 2001:db8:1::/64", ""}[r.IntN(3)])}
		}
		if r.IntN(3) == 0 {
			svc.Affinity = &model.Affinity{Timeout: time.Hour, Exact: r.IntN(2) == 0}
		}
		if r.IntN(3) == 0 {
			svc.Limits = &model.Limits{NewPerSecond: 10 * r.Uint32N(2), PerClient: r.Uint32N(3), Total: 1000}
		}
		s.Services = append(s.Services, svc)
	}
	return s
}

// TestWatch has another program change the tables: it is noticed, and made good by the next Apply. Our own changes are not.
func TestWatch(t *testing.T) {
	k := newKernel(t)
	p := plan.New(features(), plan.IPv4, testOptions)
	k.apply(t, p)
	want := k.list(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed := make(chan struct{}, 100)
	done := make(chan error)
	opened := make(chan struct{})
	go netlab.In(t, k.ns, func() {
		close(opened)
		done <- k.Watch(ctx, func() { changed <- struct{}{} })
	})
	<-opened
	for !k.watches() {
		<-time.After(time.Millisecond)
	}
	other := *p
	other.Addresses = p.Addresses[1:]
	k.apply(t, &other) // ours
	k.apply(t, p)
	for _, command := range []string{
		"delete element ip sallyport tcp-destinations { 198.51.100.10 . 80 . 0 }",
		"flush chain ip sallyport dispatch",
		"insert rule ip sallyport prerouting accept",
		"delete table ip sallyport",
		"flush ruleset",
	} {
		for range len(changed) {
			t.Errorf("before %s: a change of ours is taken for another's", command)
			<-changed
		}
		netlab.In(t, k.ns, func() { netlab.Run(t, "nft", command) })
		select {
		case <-changed:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s is not noticed", command)
		}
		if !k.apply(t, p) {
			t.Errorf("after %s nothing is written", command)
		}
		if got := k.list(t); !slices.Equal(got, want) {
			t.Errorf("%s is not made good:\n%s", command, strings.Join(got, "\n"))
		}
	}
	netlab.In(t, k.ns, func() {
		netlab.Run(t, "nft", "add table ip other; add chain ip other dispatch; add rule ip other dispatch accept; delete table ip other")
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for range len(changed) {
		t.Error("a table of others is taken for ours")
		<-changed
	}
}

// TestMends has the kernel lose what is to be changed while no one watches.
func TestMends(t *testing.T) {
	k := newKernel(t)
	p := plan.New(features(), plan.IPv4, testOptions)
	k.apply(t, p)
	want := k.list(t)
	s := features()
	s.Services[0].Ports[0].Destinations = s.Services[0].Ports[0].Destinations[1:]
	netlab.In(t, k.ns, func() { netlab.Run(t, "nft", "flush", "map", "ip", Name, "tcp-destinations") })
	k.apply(t, plan.New(s, plan.IPv4, testOptions))
	k.apply(t, p)
	if got := k.list(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
	if !strings.Contains(k.log.String(), "all are written anew") {
		t.Errorf("the log says nothing: %s", k.log)
	}
}

// TestOtherVersion has a table of the same name, but with other properties, in the way.
func TestOtherVersion(t *testing.T) {
	k := newKernel(t)
	netlab.In(t, k.ns, func() {
		netlab.Run(t, "nft", "add table ip sallyport; add set ip sallyport services { type mark; }; add chain ip sallyport old")
	})
	p := plan.New(features(), plan.IPv4, testOptions)
	k.apply(t, p)
	fresh := newKernel(t)
	fresh.apply(t, p)
	if got, want := k.list(t), fresh.list(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestSweeps has chains of an earlier run in the kernel, which nothing leads to.
func TestSweeps(t *testing.T) {
	k := newKernel(t)
	p := plan.New(features(), plan.IPv4, testOptions)
	k.apply(t, p)
	want := k.list(t)
	netlab.In(t, k.ns, func() {
		netlab.Run(t, "nft", "add chain ip sallyport old; add chain ip sallyport older; add rule ip sallyport old goto older")
		var err error
		if k.Dataplane, err = New(Options{}); err != nil {
			t.Fatal(err)
		}
	})
	k.apply(t, p)
	if got := k.list(t); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestKilled has nft killed in the middle of a transaction, as by a kernel out of memory: the kernel holds what it held before, the
// state of clients included, and the next Apply makes everything good.
func TestKilled(t *testing.T) {
	k := newKernel(t)
	p := plan.New(features(), plan.IPv4, testOptions)
	k.apply(t, p)
	const client = "{ 0x53000200 . 192.0.2.9 : 0x53000201 }"
	netlab.In(t, k.ns, func() { netlab.Run(t, "nft", "add", "element", "ip", Name, clients, client) })
	want := k.list(t)
	nft := k.nft
	k.nft = filepath.Join(t.TempDir(), "nft")
	if err := os.WriteFile(k.nft, []byte("#!/bin/sh\nhead -c 1000 >/dev/null; kill -KILL $$\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := scenario.ManyServices(1000, 3)
	netlab.In(t, k.ns, func() {
		if _, err := k.Apply(t.Context(), plan.New(s, plan.IPv4, testOptions)); err == nil || !strings.Contains(err.Error(), "signal: killed") {
			t.Errorf("got %v", err)
		}
	})
	if got := k.list(t); !slices.Equal(got, want) {
		t.Errorf("after nft was killed\n%s", strings.Join(got, "\n"))
	}
	k.nft = nft
	if !k.apply(t, p) {
		t.Error("what the kernel holds is not known, and nothing was written")
	}
	if got := k.list(t); !slices.Equal(got, want) {
		t.Errorf("then\n%s", strings.Join(got, "\n"))
	}
}

func TestRemove(t *testing.T) {
	k := newKernel(t)
	alone := testOptions
	alone.Router = false
	k.apply(t, plan.New(features(), plan.IPv4, alone))
	k.apply(t, plan.New(features(), plan.IPv6, testOptions))
	for f, want := range map[plan.Family]bool{plan.IPv4: true, plan.IPv6: false} {
		netlab.In(t, k.ns, func() {
			if got, err := k.Alone(t.Context(), f); err != nil || got != want {
				t.Errorf("alone in %v: got %v, %v", f, got, err)
			}
		})
	}
	netlab.In(t, k.ns, func() {
		netlab.Run(t, "nft", "add table inet sallyport")
		removed, err := k.Remove(t.Context())
		if got := fmt.Sprint(removed, err); got != "[table ip sallyport of nft, with 28 chains table ip6 sallyport of nft, with 22 chains] <nil>" {
			t.Error(got)
		}
		if removed, err := k.Remove(t.Context()); len(removed) != 0 || err != nil {
			t.Errorf("again: %v, %v", removed, err)
		}
	})
	if got := strings.Join(k.list(t), "\n"); got != "table inet sallyport {" {
		t.Errorf("left: %s", got)
	}
}

// TestErrors keeps the seed out of what nft complains about.
func TestErrors(t *testing.T) {
	k := newKernel(t)
	netlab.In(t, k.ns, func() {
		err := k.run(t.Context(), []byte("add table ip sallyport\nadd chain ip sallyport a\nadd rule ip sallyport a meta mark set jhash ip saddr mod 1 seed 0x5eed5eed nonsense\n"))
		want := `nft -f: exit status 1: /dev/stdin:3:84-84: Error: syntax error, unexpected newline: add rule ip sallyport a meta mark set jhash ip saddr mod 1 seed … nonsense`
		if fmt.Sprint(err) != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
	t.Setenv("PATH", t.TempDir())
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "apt-get install nftables") {
		t.Errorf("without nft: got %v", err)
	}
}

// FuzzNames has names from the cluster in comments: none ends an element.
func FuzzNames(f *testing.F) {
	for _, name := range []string{"web", `a" : drop }`, "a\nflush ruleset", strings.Repeat("x", 200), "é", "-a", "${x}", "#"} {
		f.Add(name, name)
	}
	f.Fuzz(func(t *testing.T, name, port string) {
		s := features()
		for i := range s.Services {
			s.Services[i].Ref.Name, s.Services[i].Ref.Namespace = name, port
			for k := range s.Services[i].Ports {
				s.Services[i].Ports[k].Name = port
			}
		}
		text := Text(plan.New(s, plan.IPv4, testOptions))
		plain := Text(plan.New(features(), plan.IPv4, testOptions))
		if got, want := strings.Count(text, "\n"), strings.Count(plain, "\n"); got != want {
			t.Fatalf("%d lines, want %d", got, want)
		}
		if _, err := trace.Read(text); err != nil {
			t.Fatal(err)
		}
	})
}

// TestNamesInKernel has the real nft read what names make of comments.
func TestNamesInKernel(t *testing.T) {
	s := features()
	for i, name := range []string{`a" : drop }`, "a;b", "x.y-z/0:1", strings.Repeat("x", 120), "$x", "\\"} {
		s.Services[i].Ref.Namespace, s.Services[i].Ref.Name = "ns", name
	}
	netlab.In(t, netlab.Namespace(t), func() {
		cmd := exec.Command("nft", "--check", "--file", "-")
		cmd.Stdin = strings.NewReader(Text(plan.New(s, plan.IPv4, testOptions)))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}
