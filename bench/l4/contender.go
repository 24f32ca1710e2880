package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/bench/l4/api"
	"sallyport/bench/lab/network"
)

// A contender is a program that forwards connections to Services, set up in one way.
type contender interface {
	// name is how the results call it.
	name() string
	// most is the number of Services above which it is not run; 0 if there is none.
	most() int
	// prepare makes the edge ready for the first start.
	prepare(e *edgeHost, s *site) error
	// command is the command line that serves the cluster of the kubeconfig. It may write files into dir.
	command(e *edgeHost, kubeconfig, dir string) ([]string, error)
	// metrics is where it serves them, on its host.
	metrics() string
	// applied is the time that the program itself says it took to bring all Services into the kernel, 0 if it has not yet.
	applied(m samples) time.Duration
	// places are the Services that its rules have first, in the middle and last, of n.
	places(e *edgeHost, n int) ([3]int, error)
	// clean removes what the program has left in the kernel, with the program's own means if it has any.
	clean(e *edgeHost, dir string) error
}

// byAddress are the places where rules are found by address, and so have no order: those of the lowest, the middle and
// the highest address.
func byAddress(n int) [3]int { return [3]int{0, n / 2, n - 1} }

// A kubeProxy is a real kube-proxy with its defaults, but for the size of conntrack's table, which is read-only here.
type kubeProxy struct {
	binary, mode string
	upTo         int // Services; 0 is no end
}

func (k kubeProxy) name() string { return "kube-proxy " + k.mode }

func (k kubeProxy) most() int { return k.upTo }

func (k kubeProxy) prepare(e *edgeHost, s *site) error {
	s.members = append(s.members, e)
	return run(e.Host, "ip", "route", "add", api.Pods.String(), "via", s.node.NodesAddr.String()) // a CNI's work, on a node
}

func (k kubeProxy) command(e *edgeHost, kubeconfig, _ string) ([]string, error) {
	return []string{
		k.binary,
		"--kubeconfig=" + kubeconfig,
		"--hostname-override=" + e.Name,
		"--proxy-mode=" + k.mode,
		"--cluster-cidr=" + api.Pods.String(),
		"--nodeport-addresses=" + e.Addr.String() + "/32",
		"--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0",
	}, nil
}

func (k kubeProxy) metrics() string { return "http://127.0.0.1:10249/metrics" }

func (k kubeProxy) applied(m samples) time.Duration {
	return m.seconds(`kubeproxy_sync_full_proxy_rules_duration_seconds_sum{ip_family="IPv4"}`)
}

// places reads the order from the chain that every new connection goes through: kube-proxy writes it in a map's order.
func (k kubeProxy) places(e *edgeHost, n int) ([3]int, error) {
	if k.mode != "iptables" {
		return byAddress(n), nil
	}
	out, err := output(e.Host, "", "iptables", "-t", "nat", "-S", "KUBE-SERVICES")
	if err != nil {
		return [3]int{}, err
	}
	service := make(map[netip.Addr]int, n)
	for i := range n {
		service[api.VIP(i)] = i
	}
	var order []int
	for field := range strings.FieldsSeq(out) {
		if p, err := netip.ParsePrefix(field); err == nil {
			if i, ok := service[p.Addr()]; ok {
				order = append(order, i)
			}
		}
	}
	if order = slices.Compact(order); len(order) != n {
		return [3]int{}, fmt.Errorf("chain KUBE-SERVICES of %s has rules for %d of %d VIPs", e.Name, len(order), n)
	}
	return [3]int{order[0], order[n/2], order[n-1]}, nil
}

func (k kubeProxy) clean(e *edgeHost, _ string) error { return emptyKernel(e) }

// A sallyport is the edge of this source tree, with L4 only.
type sallyport struct {
	binary, dataplane string
	backend           string // of iptables; empty for other dataplanes
	snat              string // a range of addresses that all VIPs' connections have as their source; empty: the machine's own
}

func (s sallyport) name() string {
	if s.backend == "" {
		return "sallyport " + s.dataplane
	}
	return "sallyport " + s.dataplane + "-" + s.backend
}

func (s sallyport) most() int { return 0 }

func (s sallyport) prepare(*edgeHost, *site) error { return nil }

func (s sallyport) configFile(dir string) string { return filepath.Join(dir, "sallyport.yaml") }

// config is sallyport.yaml: what is not needed to forward connections is off.
func (s sallyport) config(kubeconfig string) string {
	groups := "[]"
	if s.snat != "" {
		groups = fmt.Sprintf("[{name: bench, snatAddresses: [%s]}]", s.snat)
	}
	return fmt.Sprintf(`edge: {name: edge, stateDir: ""}
clusters: [{name: bench, kubeconfig: %s, secrets: none}]
reach: pods
loadBalancer: {ipAddressPools: [{name: bench, addresses: ["%v"]}]}
l4: {dataplane: %s, iptablesBackend: %s}
l7: {enabled: false}
status: {enabled: false}
groups: %s
`, kubeconfig, api.VIPs, s.dataplane, cmp.Or(s.backend, "auto"), groups)
}

func (s sallyport) command(_ *edgeHost, kubeconfig, dir string) ([]string, error) {
	err := os.WriteFile(s.configFile(dir), []byte(s.config(kubeconfig)), 0o600)
	return []string{s.binary, "run", "--config", s.configFile(dir)}, err
}

func (s sallyport) metrics() string { return "http://127.0.0.1:9440/metrics" }

func (s sallyport) applied(m samples) time.Duration {
	if m["sallyport_rules_apply_seconds_count"] == 0 { // translated, but not applied yet
		return 0
	}
	return m.seconds("sallyport_translate_seconds_sum") + m.seconds("sallyport_rules_apply_seconds_sum")
}

func (s sallyport) places(_ *edgeHost, n int) ([3]int, error) { return byAddress(n), nil }

// clean runs sallyport cleanup and fails if that leaves anything of ours.
func (s sallyport) clean(e *edgeHost, dir string) error {
	err := run(e.Host, s.binary, "cleanup", "--config", s.configFile(dir))
	if err != nil {
		return err
	}
	left, err := leftovers(e)
	if err == nil && left != "" {
		err = fmt.Errorf("sallyport cleanup of %s leaves %s", s.name(), left)
	}
	return errors.Join(err, emptyKernel(e))
}

// leftovers says what of Sallyport is in the kernel of an edge; nothing if that is so.
func leftovers(e *edgeHost) (string, error) {
	var left []string
	for _, look := range [][]string{
		{"nft", "list", "ruleset"}, {"iptables-legacy-save"}, {"ip6tables-legacy-save"}, {"ip", "-o", "link"}, {"ip", "route", "show", "table", "all"},
	} {
		out, err := output(e.Host, "", look[0], look[1:]...)
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(strings.ToLower(line), "sally") {
				left = append(left, strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(left, "; "), nil
}

// emptyTables is what iptables-legacy-restore makes the kernel's tables empty with.
const emptyTables = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\nCOMMIT\n"

// emptyKernel makes an edge's rules and connections what they are after a boot.
func emptyKernel(e *edgeHost) error {
	err := run(e.Host, "nft", "flush", "ruleset")
	for _, family := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		_, failed := output(e.Host, emptyTables, family)
		err = errors.Join(err, failed)
	}
	return errors.Join(err, run(e.Host, "conntrack", "-F"))
}

// samples is a page of metrics in Prometheus' text format: each sample's name and labels, and its value.
type samples map[string]float64

// readMetrics gets the page of a contender on its host.
func readMetrics(h *network.Host, url string) (samples, error) {
	page, err := get(h, url)
	return parseMetrics(page), err
}

func parseMetrics(page string) samples {
	m := samples{}
	for line := range strings.Lines(page) {
		if i := strings.LastIndexByte(strings.TrimSpace(line), ' '); i > 0 && line[0] != '#' {
			var value float64
			if _, err := fmt.Sscan(line[i:], &value); err == nil {
				m[line[:i]] = value
			}
		}
	}
	return m
}

// seconds is the value of a sample that counts seconds, 0 if there is none.
func (m samples) seconds(name string) time.Duration {
	return time.Duration(m[name] * float64(time.Second))
}
