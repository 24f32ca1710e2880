package rules

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
	"sallyport/watcher/model"
)

var (
	noise        = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]`)
	emptyBuiltIn = regexp.MustCompile(`(?m)^\*\w+\n(:[A-Z]+ ACCEPT ?\n)*COMMIT\n`)
)

// state prints what the kernel holds in the namespace that the caller is in.
func state(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(rulesOf(t, BackendNFT) + rulesOf(t, BackendLegacy))
	b.WriteString(netlab.Run(t, "nft", "list", "tables") + netlab.Run(t, "ipset", "list", "-n"))
	for _, what := range []string{"route show", "-6 route show", "route show table local", "-6 route show table local", "link show", "addr show", "rule show"} {
		b.WriteString("ip " + what + "\n" + netlab.Run(t, append([]string{"ip", "-d"}, strings.Fields(what)...)...))
	}
	b.WriteString(netlab.Run(t, "sysctl", "-a", "--pattern", `(ip_forward|\.forwarding|accept_ra)$`))
	return b.String()
}

// rulesOf prints a backend's rules of both families, without comments, counters, and tables that have nothing but empty
// built-in chains.
func rulesOf(t *testing.T, b Backend) string {
	t.Helper()
	var all string
	for _, f := range plan.Families {
		save := commandOf(f) + "-" + string(b) + "-save"
		all += save + "\n" + emptyBuiltIn.ReplaceAllString(noise.ReplaceAllString(netlab.Run(t, save), ""), "")
	}
	return all
}

// web is reached at a NodePort and at a VIP.
func web(destinations string) *model.Snapshot {
	return scenario.Snapshot(scenario.Service("web", "198.51.100.10", "TCP 80 30001:"+destinations))
}

// TestCleanup holds that nothing of ours outlives Cleanup, and nothing of others is touched before or by it.
func TestCleanup(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		var before string
		netlab.In(t, n.Edge, func() {
			for _, f := range plan.Families {
				command := commandOf(f) + "-" + string(cmp.Or(o.Backend, BackendNFT))
				netlab.Run(t, command, "-t", "nat", "-N", "FOREIGN")
				netlab.Run(t, command, "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "FOREIGN")
				netlab.Run(t, command, "-A", "INPUT", "-p", "tcp", "--dport", "7", "-m", "comment", "--comment", "not SALLY- at all", "-j", "DROP")
				netlab.Run(t, command, "-P", "FORWARD", "DROP")
			}
			netlab.Run(t, "ip", "route", "add", "203.0.113.0/24", "via", clientIP)
			netlab.Run(t, "ip", "route", "add", "2001:db8:3::/64", "via", netlab.ClientIPv6)
			netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
			before = state(t)
		})
		reconcile := startKernel(t, n, o)
		for _, to := range []string{"", " 10.1.0.2:9376 [fd00:1::2]:9376", scenario.Destinations(30), ""} {
			reconcile(dual(scenario.Service("web", "198.51.100.10 2001:db8:2::10", "TCP 80 30001:"+to)))
		}
		netlab.In(t, n.Edge, func() {
			if got := state(t); got == before {
				t.Error("Reconcile left no trace")
			}
			removed, err := Cleanup(context.Background(), Options{})
			want := map[Dataplane]int{"": 9, DataplaneNFTables: 9}[o.Dataplane]
			if err != nil || len(removed) != want {
				t.Errorf("Cleanup: %q, %v; want a link, and for each family a route, forwarding, and rules of one or two tables", removed, err)
			}
			if got := state(t); got != before {
				t.Errorf("after Cleanup:\n%s\nbefore:\n%s", got, before)
			}
			if removed, err := Cleanup(context.Background(), Options{}); err != nil || len(removed) != 0 {
				t.Errorf("second Cleanup: %q, %v; want nothing to do", removed, err)
			}
		})
	})
}

// TestStart holds that the first Reconcile removes what an earlier version, or one with another dataplane or backend, left.
func TestStart(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		for _, other := range []Options{{Backend: BackendNFT}, {Backend: BackendLegacy}, {Dataplane: DataplaneNFTables}} {
			startKernel(t, n, other)(web(scenario.Destinations(12)))
		}
		netlab.In(t, n.Edge, func() {
			for _, command := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
				for _, table := range []string{"nat", "mangle"} {
					netlab.Run(t, command, "-t", table, "-N", "SALLY-OLD")
					netlab.Run(t, command, "-t", table, "-N", "SALLY-OLDER")
					netlab.Run(t, command, "-t", table, "-A", "SALLY-OLDER", "-j", "SALLY-OLD")
					netlab.Run(t, command, "-t", table, "-A", "PREROUTING", "-p", "udp", "-j", "SALLY-OLDER")
				}
				netlab.Run(t, command, "-N", "SALLY-INPUT")
				netlab.Run(t, command, "-A", "SALLY-INPUT", "-j", "DROP")
			}
		})
		startKernel(t, n, o)(web(scenario.Destinations(3)))
		netlab.In(t, n.Edge, func() {
			shown := map[string]bool{}
			for _, command := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft list ruleset"} {
				out := netlab.Run(t, strings.Fields(command)...)
				shown[command] = strings.Contains(out, ":SALLY-") || strings.Contains(out, "table ip sallyport") || strings.Contains(out, "table ip6 sallyport")
				if strings.Contains(out, "SALLY-OLD") || strings.Contains(out, "-A SALLY-INPUT -j DROP") {
					t.Errorf("%s: old rules are still there:\n%s", command, out)
				}
			}
			for command, has := range shown {
				if own := command == "nft list ruleset" && o.Dataplane == DataplaneNFTables || o.Dataplane == "" && strings.Contains(command, "-"+string(o.Backend)+"-"); has != own {
					t.Errorf("%s: has our rules: %v, want %v", command, has, own)
				}
			}
		})
		for _, ip := range podIPs {
			netlab.Serve(t, n.Node, ip+":9376", "pod")
		}
		if got := netlab.Ask(t, n.Client, "tcp", edgeIP+":30001"); !strings.HasPrefix(got, "pod ") {
			t.Errorf("NodePort after all: %s", got)
		}
	})
}

// TestUpdate follows one Service through changes, with a connection that must live through all of them, and a FORWARD
// policy that drops what is not accepted.
func TestUpdate(t *testing.T) {
	everyDataplane(t, func(t *testing.T, o Options) {
		n := newNetwork(t)
		if o.Dataplane != DataplaneNFTables {
			netlab.In(t, n.Edge, func() { netlab.Run(t, "iptables-"+string(o.Backend), "-P", "FORWARD", "DROP") })
		}
		for _, ip := range podIPs {
			netlab.Serve(t, n.Node, ip+":9376", ip)
		}
		reconcile := startKernel(t, n, o)
		reconcile(web(" 10.1.0.2:9376"))
		conn, err := netlab.Dial(t, n.Client, "tcp", "198.51.100.10:80")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := netlab.Exchange(conn); got != "10.1.0.2 10.0.0.1" {
			t.Fatalf("connected to %s, want 10.1.0.2", got)
		}
		for _, step := range []struct {
			why  string
			s    *model.Snapshot
			want string
		}{
			{"another endpoint", web(" 10.1.0.3:9376"), "10.1.0.3 10.0.0.1"},
			{"no endpoint", web(""), "refused"},
			{"more endpoints, all the same server", web(strings.Repeat(" 10.1.0.4:9376", 20)), "10.1.0.4 10.0.0.1"},
			{"another Service first", scenario.Snapshot(scenario.Service("a", "198.51.100.9", "TCP 80 0:"), web(" 10.1.0.2:9376").Services[0]), "10.1.0.2 10.0.0.1"},
			{"VIP withdrawn", scenario.Snapshot(scenario.Service("web", "", "TCP 80 30001: 10.1.0.2:9376")), "no route"},
			{"VIP back", web(" 10.1.0.3:9376"), "10.1.0.3 10.0.0.1"},
		} {
			reconcile(step.s)
			got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80")
			if step.want == "no route" {
				if strings.HasPrefix(got, "10.") {
					t.Errorf("%s: still answered by %s", step.why, got)
				}
			} else if got != step.want {
				t.Errorf("%s: got %s, want %s", step.why, got, step.want)
			}
			if got := netlab.Exchange(conn); got != "hello" {
				t.Fatalf("%s: the connection made before is broken: %s", step.why, got)
			}
		}
	})
}

// TestIdempotent holds that an unchanged snapshot runs nothing, and that a failed apply is made good by the next.
func TestIdempotent(t *testing.T) {
	n := newNetwork(t)
	reg := prometheus.NewRegistry()
	var k *Kernel
	netlab.In(t, n.Edge, func() {
		var err error
		if k, err = NewKernel(Options{Metrics: reg}); err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		applies := func(result string) float64 { return testutil.ToFloat64(k.metrics.applies.WithLabelValues(result)) }
		reconcile := func() error { return k.Reconcile(context.Background(), web(" 10.1.0.2:9376")) }
		for range 3 {
			if err := reconcile(); err != nil {
				t.Fatal(err)
			}
		}
		if got := applies("success"); got != 1 {
			t.Errorf("three calls with one snapshot applied %v times, want once", got)
		}
		if got := testutil.ToFloat64(k.metrics.rules.WithLabelValues("IPv4", "nat")); got < 5 {
			t.Errorf("sallyport_rules_count{family=IPv4,table=nat} is %v", got)
		}
		ipv4 := k.rules.(*xtables).writer(plan.IPv4)
		good := ipv4.flavour
		ipv4.command = "false" // false-restore is no command
		if err := k.Reconcile(context.Background(), web("")); err == nil || !strings.Contains(err.Error(), "false-restore") {
			t.Errorf("restore that cannot run: got error %v", err)
		}
		ipv4.flavour = good
		netlab.Run(t, good.command, "-t", "nat", "-F") // whatever happened meanwhile
		if err := reconcile(); err != nil {
			t.Fatal(err)
		}
		if out := netlab.Run(t, good.command+"-save", "-t", "nat"); !strings.Contains(out, "-A PREROUTING -j SALLY-SERVICES") || !strings.Contains(out, "10.1.0.2:9376") {
			t.Errorf("rules are not whole after an error:\n%s", out)
		}
		if ok, bad := applies("success"), applies("error"); ok != 2 || bad != 1 {
			t.Errorf("applies: %v good, %v bad; want 2 and 1", ok, bad)
		}
	})
}

// TestRoutes holds that routes follow the nodes, and that those of others stay as they are.
func TestRoutes(t *testing.T) {
	n := newNetwork(t)
	routes := func() string {
		var out string
		netlab.In(t, n.Edge, func() { out = netlab.Run(t, "ip", "-4", "route", "show") })
		list := slices.DeleteFunc(strings.Split(strings.TrimSpace(out), "\n"), func(l string) bool { return strings.Contains(l, "proto kernel") })
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		return strings.Join(list, "\n")
	}
	const foreign = "10.1.7.0/24 via 10.0.0.99 dev back metric 50"
	netlab.In(t, n.Edge, func() { netlab.Run(t, append([]string{"ip", "route", "add"}, strings.Fields(foreign)...)...) })
	nodes := func(list ...model.Node) *model.Snapshot { return &model.Snapshot{Nodes: list} }
	reconcile := startKernel(t, n, Options{})
	for _, tt := range []struct {
		why  string
		s    *model.Snapshot
		want string
	}{
		{"one node", nodes(scenario.Node("a", "10.0.0.11", "10.1.0.0/24")), "10.1.0.0/24 via 10.0.0.11 dev back proto 83\n" + foreign},
		{"a second, and its address changes", nodes(scenario.Node("a", "10.0.0.12", "10.1.0.0/24"), scenario.Node("b", "10.0.0.13", "10.1.1.0/24")),
			"10.1.0.0/24 via 10.0.0.12 dev back proto 83\n10.1.1.0/24 via 10.0.0.13 dev back proto 83\n" + foreign},
		{"a node that others route to", nodes(scenario.Node("a", "10.0.0.12", "10.1.7.0/24")), foreign},
		{"a node on another network", nodes(scenario.Node("a", "172.16.0.1", "10.1.0.0/24"), scenario.Node("b", "10.0.0.13", "10.1.1.0/24")),
			"10.1.1.0/24 via 10.0.0.13 dev back proto 83\n" + foreign},
		{"no nodes", nodes(), foreign},
	} {
		reconcile(tt.s)
		if got := routes(); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.why, got, tt.want)
		}
	}
	reconcile(nodes(scenario.Node("a", "10.0.0.11", "10.1.0.0/24")))
	netlab.In(t, n.Edge, func() { netlab.Run(t, "ip", "route", "add", "10.1.0.0/24", "via", "10.0.0.98", "metric", "50") })
	reconcile(nodes(scenario.Node("a", "10.0.0.11", "10.1.0.0/24")))
	if got, want := routes(), "10.1.0.0/24 via 10.0.0.98 dev back metric 50\n"+foreign; got != want {
		t.Errorf("another program adds a route later:\n%s\nwant\n%s", got, want)
	}
	netlab.In(t, n.Edge, func() { netlab.Run(t, "ip", "route", "del", "10.1.0.0/24", "metric", "50") })
	startKernel(t, n, Options{Reach: model.ReachNodes})(nodes(scenario.Node("a", "10.0.0.11", "10.1.0.0/24")))
	if got := routes(); got != foreign {
		t.Errorf("reach nodes:\n%s\nwant\n%s", got, foreign)
	}
}

// TestOwnAddressIsNoVIP holds that a Service cannot take the edge's own address from it.
func TestOwnAddressIsNoVIP(t *testing.T) {
	n := newNetwork(t)
	netlab.Serve(t, n.Edge, "0.0.0.0:22", "sshd")
	s := scenario.Snapshot(scenario.Service("thief", edgeIP+" 198.51.100.10", "TCP 22 0:"))
	startKernel(t, n, Options{})(s)
	if got := netlab.Ask(t, n.Client, "tcp", edgeIP+":22"); !strings.HasPrefix(got, "sshd") {
		t.Errorf("edge's own port 22: %s", got)
	}
	if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:22"); got != "refused" {
		t.Errorf("the Service's other VIP: %s", got)
	}
	if len(s.Services[0].VIPs) != 2 {
		t.Error("Reconcile changed the snapshot")
	}
}

// TestForeignLink holds that a link of our name which we did not make is neither used nor removed.
func TestForeignLink(t *testing.T) {
	n := newNetwork(t)
	netlab.In(t, n.Edge, func() {
		netlab.Run(t, "ip", "link", "add", "sally0", "type", "bridge")
		netlab.Run(t, "ip", "addr", "add", "203.0.113.1/24", "dev", "sally0")
		k, err := NewKernel(Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		const want = `link sally0 is not Sallyport's (its alias is not "sallyport: VIPs"): rename it, or remove it by ip link del sally0`
		if err := k.Reconcile(context.Background(), web("")); fmt.Sprint(err) != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if _, err := Cleanup(context.Background(), Options{}); fmt.Sprint(err) != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
		if out := netlab.Run(t, "ip", "addr", "show", "sally0"); !strings.Contains(out, "203.0.113.1/24") {
			t.Errorf("the link was changed: %s", out)
		}
	})
}

func TestParseSave(t *testing.T) {
	got := parseSave([]byte(`# Generated by iptables-save
*nat
:PREROUTING ACCEPT [1:2]
:SALLY-A - [0:0]
:KUBE-SALLY-B - [0:0]
-A PREROUTING -p udp -m comment --comment "to -j SALLY-A" -j OTHER
-A PREROUTING -p udp -m comment --comment "a b" -g SALLY-A
-A SALLY-A -j SALLY-A
COMMIT
*filter
:INPUT ACCEPT [0:0]
COMMIT
`))
	if len(got) != 1 || fmt.Sprint(got["nat"].chains) != "[SALLY-A]" {
		t.Errorf("found %+v", got)
	}
	const want = "*nat\n:SALLY-A - [0:0]\n-D PREROUTING -p udp -m comment --comment \"a b\" -g SALLY-A\n-X SALLY-A\nCOMMIT\n"
	if remove := string(got["nat"].remove("nat")); remove != want {
		t.Errorf("got  %s\nwant %s", remove, want)
	}
}

func TestExplain(t *testing.T) {
	input := []byte("*nat\n:A - [0:0]\n-A A -j HMARK --hmark-rnd 0x5eed\n-A A -j NOPE\nCOMMIT\n")
	for _, tt := range []struct{ name, stderr, want string }{
		{"nft", "iptables-nft-restore v1.8.9 (nf_tables): Chain 'NOPE' does not exist\nError occurred at line: 4\nTry `iptables-nft-restore -h' for more information.\n",
			`iptables-nft-restore v1.8.9 (nf_tables): Chain 'NOPE' does not exist Error occurred at line: 4, near "2: :A - [0:0]; 3: -A A -j HMARK --hmark-rnd …; 4: -A A -j NOPE; 5: COMMIT; 6: "`},
		{"legacy", "iptables-restore: line 5 failed\n", `iptables-restore: line 5 failed, near "3: -A A -j HMARK --hmark-rnd …; 4: -A A -j NOPE; 5: COMMIT; 6: "`},
		{"line that is not there", "line 77 failed", "line 77 failed"},
		{"no line", "Another app is currently holding the xtables lock.\n", "Another app is currently holding the xtables lock."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := explain(tt.stderr, input); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestRestoreNamesTheLine runs real commands on rules that they refuse.
func TestRestoreNamesTheLine(t *testing.T) {
	bothBackends(t, func(t *testing.T, b Backend) {
		n := newNetwork(t)
		netlab.In(t, n.Edge, func() {
			f, err := findFlavour(b, plan.IPv4)
			if err != nil {
				t.Fatal(err)
			}
			err = f.restore(context.Background(), []byte("*nat\n:SALLY-A - [0:0]\n-A SALLY-A -j SALLY-MISSING\nCOMMIT\n"))
			if err == nil || !strings.Contains(err.Error(), "3: -A SALLY-A -j SALLY-MISSING") {
				t.Errorf("got error %v, want the line in it", err)
			}
		})
	})
}

func TestNoIPTables(t *testing.T) {
	netlab.Namespace(t)
	t.Setenv("PATH", t.TempDir())
	_, err := NewKernel(Options{})
	if err == nil || !strings.Contains(err.Error(), "apt-get install iptables") {
		t.Errorf("got error %v, want one that says what to do", err)
	}
}

// TestOtherBackendBroken holds that rules are applied where the other backend is installed, but not in the kernel.
func TestOtherBackendBroken(t *testing.T) {
	n := newNetwork(t)
	bin := t.TempDir()
	script := []byte("#!/bin/sh\n[ \"$1\" = --version ] && echo 'iptables v1.8.9 (nf_tables)' && exit\necho no nf_tables here >&2; exit 1\n")
	for _, name := range []string{"iptables-nft-save", "iptables-nft-restore"} {
		if err := os.WriteFile(filepath.Join(bin, name), script, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
	for range 2 { // the second finds forwarding turned on
		startKernel(t, n, Options{Backend: BackendLegacy})(web(" 10.1.0.2:9376"))
		if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80"); got != "pod 10.0.0.1" {
			t.Errorf("got %s", got)
		}
	}
}

// TestNoExtras holds that a Service which asks for what the kernel does not have keeps no other from being served, nor itself.
func TestNoExtras(t *testing.T) {
	n := newNetwork(t)
	real, err := exec.LookPath("iptables-nft-restore")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && exec %[1]s --version\ncat > %[2]s/input\ngrep -q connlimit %[2]s/input && { echo 'no connlimit' >&2; exit 1; }\n%[1]s \"$@\" < %[2]s/input\n", real, bin)
	if err := os.WriteFile(filepath.Join(bin, "iptables-nft-restore"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	netlab.Serve(t, n.Node, "10.1.0.2:9376", "pod")
	netlab.In(t, n.Edge, func() {
		k, err := NewKernel(Options{Backend: BackendNFT})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		s := web(" 10.1.0.2:9376")
		s.Services[0].Limits = &model.Limits{Total: 7}
		for range 2 {
			if err := k.Reconcile(context.Background(), s); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(k.Problems()); !strings.HasPrefix(got, "[Service default/web: metadata.annotations: its connections are not limited") {
				t.Errorf("Problems %s", got)
			}
		}
		if ok, bad := testutil.ToFloat64(k.metrics.applies.WithLabelValues("success")), testutil.ToFloat64(k.metrics.applies.WithLabelValues("error")); ok != 1 || bad != 1 {
			t.Errorf("%v applies and %v errors, want one each", ok, bad)
		}
	})
	if got := netlab.Ask(t, n.Client, "tcp", "198.51.100.10:80"); got != "pod 10.0.0.1" {
		t.Errorf("VIP: %s", got)
	}
}

func TestNoPrivilege(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"NewKernel": func() error { _, err := NewKernel(Options{}); return err },
		"Cleanup":   func() error { _, err := Cleanup(context.Background(), Options{}); return err },
	} {
		if err := f(); err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("%s: got error %v, want one that names CAP_NET_ADMIN", name, err)
		}
	}
}
