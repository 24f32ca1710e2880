package rules

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"sallyport/rules/netlab"
)

// TestInspect makes what other programs leave on a machine, and runs the commands that are advised: they must at least be
// valid.
func TestInspect(t *testing.T) {
	for _, tt := range []struct {
		name, setup string
		want        string // subjects
		advice      string // the commands, without those of sysctl
		after       string // subjects when they were run
	}{
		{"nothing", "true", "", "", ""},
		{"rules of our own", "sallyport", "", "", ""},
		{"forwarding off", "sysctl -qw net.ipv4.ip_forward=0", "ip_forward", "", "ip_forward"},
		{"strict on two links", "sysctl -qw net.ipv4.conf.front.rp_filter=1 net.ipv4.conf.back.rp_filter=1", "rp_filter", "", "rp_filter"},
		{"other backend drops", "iptables-legacy -P FORWARD DROP; iptables-legacy -A INPUT -p tcp -j ACCEPT; iptables-legacy -P INPUT DROP",
			"iptables-legacy iptables-legacy iptables-legacy",
			"iptables-legacy -I FORWARD -m mark --mark 0x53100000/0xffb00000 -j ACCEPT; iptables-legacy -I FORWARD -m connmark --mark 0x53000000/0xff000000 -j ACCEPT; " +
				"iptables-legacy -I INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT",
			"iptables-legacy iptables-legacy"},
		{"policies", "iptables-nft -P FORWARD DROP; iptables-nft -P INPUT DROP", "FORWARD INPUT",
			"iptables-nft -I INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT", "FORWARD INPUT"},
		{"rules before us", "sallyport; iptables-nft -I FORWARD -i back -j DROP", "FORWARD", "", "FORWARD"},
		{"dropped early", "iptables-nft -t mangle -N BAD; iptables-nft -t mangle -A BAD -s 203.0.113.0/24 -j DROP; iptables-nft -t mangle -A PREROUTING -j BAD",
			"PREROUTING", "", "PREROUTING"},
		{"nftables", "nft add table inet filter; nft add chain inet filter forward '{ type filter hook forward priority 0; policy drop; }'; " +
			"nft add chain inet filter input '{ type filter hook input priority 0; policy drop; }'", "nftables nftables",
			"nft insert rule inet filter forward meta mark and 0xffb00000 == 0x53100000 accept; nft insert rule inet filter forward ct mark and 0xff000000 == 0x53000000 accept; " +
				"nft insert rule inet filter input tcp dport { 80, 443 } accept", "nftables nftables"},
		{"accepting nftables", "nft add table inet x; nft add chain inet x forward '{ type filter hook forward priority 0; policy accept; }'", "", "", ""},
		{"firewalld", "nft add table inet firewalld; nft add chain inet firewalld filter_INPUT '{ type filter hook input priority 10; policy drop; }'", "firewalld",
			"firewall-cmd --permanent --add-port=80/tcp --add-port=443/tcp && firewall-cmd --reload", ""},
		{"ufw", "iptables-nft -N ufw-before-input; iptables-nft -P INPUT DROP", "ufw", "ufw allow proto tcp to any port 80,443", ""},
		{"docker", "iptables-nft -t nat -N DOCKER", "docker", "", "docker"},
		{"a node", "iptables-nft -t nat -N KUBE-SERVICES", "kubernetes", "", "kubernetes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			netlab.In(t, n.Edge, func() { netlab.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1") })
			setup, ours := strings.CutPrefix(tt.setup, "sallyport")
			if ours {
				startKernel(t, n, Options{Backend: BackendNFT})(web(" 10.1.0.2:9376"))
			}
			netlab.In(t, n.Edge, func() {
				netlab.Run(t, "sh", "-ec", strings.TrimPrefix(setup, "; "))
				before := rulesOf(t, BackendNFT) + rulesOf(t, BackendLegacy)
				subjects, advice := inspect(t)
				if subjects != tt.want || advice != tt.advice {
					t.Errorf("got  %s: %s\nwant %s: %s", subjects, advice, tt.want, tt.advice)
				}
				if after := rulesOf(t, BackendNFT) + rulesOf(t, BackendLegacy); after != before {
					t.Errorf("it changed something:\n%s\nbefore:\n%s", after, before)
				}
				if tt.after == "" {
					return
				}
				netlab.Run(t, "sh", "-ec", strings.ReplaceAll(strings.ReplaceAll("true; "+tt.advice, "{", "'{"), "}", "}'"))
				if subjects, _ := inspect(t); subjects != tt.after {
					t.Errorf("after the commands: %s, want %s", subjects, tt.after)
				}
			})
		})
	}
}

// TestInspectNFTables holds that what drops forwarded packets is told, and needs nothing for connections to pass to a pod.
func TestInspectNFTables(t *testing.T) {
	n := newNetwork(t)
	for _, ip := range netlab.Pods {
		netlab.Serve(t, n.Node, net.JoinHostPort(ip, "9376"), "pod")
	}
	to := []string{"198.51.100.10:80", "[2001:db8:2::10]:80"}
	netlab.In(t, n.Edge, func() {
		for _, command := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
			netlab.Run(t, command, "-P", "FORWARD", "DROP")
		}
	})
	startKernel(t, n, Options{Dataplane: DataplaneNFTables})(webOfBoth())
	netlab.In(t, n.Edge, func() {
		findings, err := Inspect(context.Background(), Options{Dataplane: DataplaneNFTables})
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for _, f := range findings {
			if strings.Contains(f.Message, "nothing to do") {
				told++
			}
		}
		if told != 4 {
			t.Errorf("%d times, want once for each family and backend: %v", told, findings)
		}
	})
	for _, addr := range to {
		if got := netlab.Ask(t, n.Client, "tcp", addr); !strings.HasPrefix(got, "pod") {
			t.Errorf("%s: %s", addr, got)
		}
	}
}

// inspect gives the subjects and the commands of what was found.
func inspect(t *testing.T) (subjects, advice string) {
	t.Helper()
	findings, err := Inspect(context.Background(), Options{Backend: BackendNFT, L7Ports: []uint16{80, 443}})
	if err != nil {
		t.Fatal(err)
	}
	var about, commands []string
	for _, f := range findings {
		t.Log(f)
		about = append(about, f.Subject)
		for i, line := range strings.Split(f.Message, "\n") {
			if i > 0 && !strings.Contains(line, "sysctl") {
				commands = append(commands, line)
			}
		}
	}
	return strings.Join(about, " "), strings.Join(commands, "; ")
}

func TestParseDump(t *testing.T) {
	d := parseDump([]byte("*mangle\n:PREROUTING DROP [0:0]\n:A - [0:0]\n:B - [0:0]\n-A PREROUTING -g A\n-A A -j B\n-A B -j A\n-A B -s 203.0.113.0/24 -j DROP\n-A B -j SALLY-X\nCOMMIT\n"))
	if got := d.drops("mangle", "PREROUTING"); got != 1 {
		t.Errorf("%d rules drop, want 1, found through chains that lead to each other", got)
	}
	if count, tables := d.foreign(); count != 4 || fmt.Sprint(tables) != "[mangle]" {
		t.Errorf("%d foreign rules in %v, want 4 in mangle", count, tables)
	}
	if got := d.policy("mangle", "PREROUTING") + d.policy("mangle", "A") + d.policy("nat", "PREROUTING"); got != "DROP" {
		t.Errorf("policies %q, want DROP alone", got)
	}
}
