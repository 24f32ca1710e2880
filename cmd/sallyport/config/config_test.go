package config

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestParseErrors(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"empty file", "", "<nil>"},
		{"only comments", "# nothing\n", "<nil>"},
		{"key without value", "l7:\nedge:\n  log:\n", "<nil>"},
		{"a number as name", "edge:\n  name: 7\n", "<nil>"},
		{"no name", "edge:\n  name: ''\n", "f.yaml:2: edge.name: empty: give this edge a name, or leave the key out for the hostname"},
		{"a long socket", "edge:\n  admin: {socket: /" + strings.Repeat("a", 107) + "}\n", "f.yaml:2: edge.admin.socket: a path of 108 bytes is too long for a socket: give one of at most 107"},
		{"admin at the port of HTTP", "edge:\n  admin: {address: '127.0.0.1:80'}\n", "f.yaml:2: edge.admin.address: 127.0.0.1:80 is where HTTP or HTTPS is served (l7.addresses): give another port"},
		{"admin at every address", "edge: {admin: {address: '0.0.0.0:443'}}\nl7: {addresses: [192.0.2.1]}\n", "f.yaml:1: edge.admin.address: 0.0.0.0:443 is where HTTP or HTTPS is served (l7.addresses): give another port"},
		{"admin at the port of HTTP on another address", "edge: {admin: {address: '192.0.2.2:80'}}\nl7: {addresses: [192.0.2.1]}\n", "<nil>"},
		{"admin at a port where HTTP is off", "edge: {admin: {address: '127.0.0.1:80'}}\nl7: {enabled: false}\n", "<nil>"},
		{"not YAML", "edge: [", "f.yaml:1: the file: not YAML: did not find expected node content"},
		{"bad indentation", "edge:\n  name: a\n l4: {}\n", "f.yaml:3: the file: not YAML: did not find expected key"},
		{"a tab", "edge:\n\tname: a\n", "f.yaml:2: the file: not YAML: found character that cannot start any token"},
		{"unknown anchor", "l7: *x\n", "f.yaml:1: the file: not YAML: unknown anchor 'x' referenced"},
		{"an anchor", "edge: &a\n  name: a\nl4: *a\n", "f.yaml:2: l4.name: unknown key; known here: dataplane, iptablesBackend, nodePortAddresses, externalIPs, clusterIPs, sourceRangesOnNodePorts, snat, returnPath, hashSeed, conntrackMax"},
		{"two documents", "---\nreach: pods\n---\nreach: nodes\n", "f.yaml:4: the file: a second document, behind \"---\": put all keys into one"},
		{"one document between markers", "# first\n---\nreach: pods\n---\n", "<nil>"},
		{"empty address", "edge:\n  admin:\n    address: ''\n", "f.yaml:3: edge.admin.address: \"\" is not an address and port such as 127.0.0.1:9440"},
		{"empty prefix", "l4: {nodePortAddresses: ['']}\n", "f.yaml:1: l4.nodePortAddresses[0]: \"\" is not a CIDR such as 192.0.2.0/24"},
		{"empty item", "l7:\n  trustedProxies:\n  - 192.0.2.0/24\n  -\n", "f.yaml:4: l7.trustedProxies[1]: empty: give a value or remove it"},
		{"IPv6 NodePorts", "l4: {nodePortAddresses: ['2001:db8::/64']}\n", "<nil>"},
		{"IPv6 NodePorts in user space", "l4: {dataplane: userspace, nodePortAddresses: ['2001:db8::1/128']}\n", "<nil>"},
		{"NodePorts on a network in user space", "l4:\n  dataplane: userspace\n  nodePortAddresses: [192.0.2.0/24]\n",
			"f.yaml:3: l4.nodePortAddresses[0]: 192.0.2.0/24 is a network, and userspace listens on addresses: name each of this machine's, as 192.0.2.0/32"},
		{"L7 address twice", "l7:\n  addresses: [192.0.2.1, 192.0.2.1]\n", "f.yaml:2: l7.addresses[1]: 192.0.2.1 is there already: name each address once, or only \"edge\" for all of them"},
		{"L7 address and all of them", "l7:\n  addresses: [192.0.2.1, edge]\n", "f.yaml:2: l7.addresses[1]: edge is there already: name each address once, or only \"edge\" for all of them"},
		{"L7 address and all of them, as an address", "l7:\n  addresses: [0.0.0.0, 192.0.2.1]\n", "f.yaml:2: l7.addresses[1]: 192.0.2.1 is there already: name each address once, or only \"edge\" for all of them"},
		{"not a mapping", "- edge\n", "f.yaml:1: the file: expected keys and values: edge, clusters, reach, loadBalancer, groups, l4, l7, status"},
		{"unknown key", "l4:\n  dataplan: x\n", "f.yaml:2: l4.dataplan: unknown key; did you mean dataplane?"},
		{"unknown key in another spelling", "load_balancer:\n", "f.yaml:1: load_balancer: unknown key; did you mean loadBalancer?"},
		{"unknown key of nothing known", "edge:\n  colour: red\n", "f.yaml:2: edge.colour: unknown key; known here: name, zone, admin, log, stateDir"},
		{"given twice", "reach: pods\nreach: nodes\n", "f.yaml:2: reach: given twice, first on line 1: remove one"},
		{"list expected", "l7:\n  addresses: edge\n", "f.yaml:2: l7.addresses: expected a list: write each value on a line of its own behind \"- \""},
		{"value expected", "reach: [pods]\n", "f.yaml:1: reach: expected one value, a text"},
		{"bad duration", "l7:\n  drainTime: ten\n", "f.yaml:2: l7.drainTime: \"ten\" is not a duration such as 10s"},
		{"bad port", "l7:\n  httpPort: 70000\n", "f.yaml:2: l7.httpPort: \"70000\" is not a number from 0 to 65535"},
		{"bad prefix", "l4:\n  nodePortAddresses:\n  - 192.0.2.1\n", "f.yaml:3: l4.nodePortAddresses[0]: \"192.0.2.1\" is not a CIDR such as 192.0.2.0/24"},
		{"host bits", "l7:\n  trustedProxies: [10.0.0.1/24]\n", "f.yaml:2: l7.trustedProxies[0]: 10.0.0.1/24 has host bits set; did you mean 10.0.0.0/24?"},
		{"not in the list", "reach: direct\n", "f.yaml:1: reach: \"direct\" is not known: use auto or pods or nodes"},
		{"two clusters", "clusters:\n- name: a\n- name: b\n", "f.yaml:3: clusters[1]: only one cluster is served by an edge: remove the others, or run an edge for each"},
		{"zero port", "l7:\n  httpPort: 0\n", "f.yaml:2: l7.httpPort: 0 is not a port: give one from 1 to 65535, or set l7.enabled: false"},
		{"no L7 address", "l7:\n  addresses: []\n", "f.yaml:2: l7.addresses: empty: name an IP address of this machine, or \"edge\" for all of them"},
		{"bad L7 address", "l7:\n  addresses: [eth0]\n", "f.yaml:2: l7.addresses[0]: \"eth0\" is neither an IP address nor \"edge\""},
		{"pool without name", "loadBalancer:\n  ipAddressPools:\n  - addresses: [192.0.2.0/28]\n", "f.yaml:3: loadBalancer.ipAddressPools[0].name: missing: give the pool a name"},
		{"pool without addresses", "loadBalancer:\n  ipAddressPools:\n  - name: a\n", "f.yaml:3: loadBalancer.ipAddressPools[0].addresses: empty: give CIDRs or ranges, such as 192.0.2.0/28 or 192.0.2.10-192.0.2.19"},
		{"overlap", "loadBalancer:\n  ipAddressPools:\n  - name: a\n    addresses: [192.0.2.0/28]\n  - name: b\n    addresses: [192.0.2.15-192.0.2.20]\n",
			"f.yaml:6: loadBalancer.ipAddressPools[1].addresses[0]: 192.0.2.15-192.0.2.20 overlaps 192.0.2.0/28 of pool \"a\": an address belongs to one pool"},
		{"IPv6 pool", "loadBalancer:\n  ipAddressPools:\n  - name: a\n    addresses: ['2001:db8::/120']\n", "<nil>"},
		{"SNAT never without a way back", "l4:\n  snat: never\n",
			"f.yaml:2: l4.snat: never needs the nodes to answer through the edge: set l4.returnPath: edge when they do, or l4.snat: auto"},
		{"return path without gateway", "l4:\n  returnPath: edge\ngroups:\n- name: a\n",
			"f.yaml:2: l4.returnPath: edge needs an address that nodes route clients through: give groups[].nodesGateway"},
		{"groups", "l4: {snat: never, returnPath: edge}\ngroups:\n- name: a\n  snatAddresses: [10.0.0.8-10.0.0.11, 'fd00::8-fd00::b']\n  nodesGateway: [10.0.0.1, 'fd00::1']\n", "<nil>"},
		{"group without name", "groups:\n- snatAddresses: [10.0.0.8/30]\n", "f.yaml:2: groups[0].name: \"\" is not a name: use lower-case letters, digits and hyphens"},
		{"groups of one name", "groups:\n- name: a\n- name: a\n", "f.yaml:3: groups[1].name: \"a\" is also the name of groups[0]: names are unique"},
		{"two SNAT ranges of a family", "groups:\n- name: a\n  snatAddresses: [10.0.0.8/30, 10.0.0.16/30]\n",
			"f.yaml:3: groups[0].snatAddresses[1]: 10.0.0.16/30 is a second range of its family, and the kernel takes one: make one range of both"},
		{"SNAT addresses of two groups", "groups:\n- name: a\n  snatAddresses: [10.0.0.8/30]\n- name: b\n  snatAddresses: [10.0.0.10/31]\n",
			"f.yaml:5: groups[1].snatAddresses[0]: 10.0.0.10/31 overlaps the range of an earlier group: an address moves with one group"},
		{"SNAT addresses of a pool", "loadBalancer:\n  ipAddressPools: [{name: p, addresses: [192.0.2.0/28]}]\ngroups:\n- name: a\n  snatAddresses: [192.0.2.0/30]\n",
			"f.yaml:5: groups[0].snatAddresses[0]: 192.0.2.0/30 overlaps 192.0.2.0/28 of pool \"p\": these are addresses on the nodes' network"},
		{"too many SNAT addresses", "groups:\n- name: a\n  snatAddresses: ['fd00::/64']\n", "f.yaml:3: groups[0].snatAddresses[0]: fd00::/64 is more than 256 addresses: a few do"},
		{"bad gateway", "groups:\n- name: a\n  nodesGateway: [127.0.0.1, 10.0.0.1, 10.0.0.2]\n",
			"f.yaml:3: groups[0].nodesGateway[0]: 127.0.0.1 is no address that nodes can route through\n" +
				"f.yaml:3: groups[0].nodesGateway[1]: 10.0.0.1 is a second one of its family: a group has one\n" +
				"f.yaml:3: groups[0].nodesGateway[2]: 10.0.0.2 is a second one of its family: a group has one"},
		{"SNAT addresses in user space", "l4: {dataplane: userspace}\ngroups:\n- name: a\n  snatAddresses: [10.0.0.8/30]\n",
			"f.yaml:3: groups[0]: userspace has connections of its own, with this machine's address: use another l4.dataplane, or leave the addresses out"},
		{"external addresses", "l4:\n  externalIPs: [198.51.100.0/24]\n", "<nil>"},
		{"every external address", "l4:\n  externalIPs: [0.0.0.0/0]\n",
			"f.yaml:2: l4.externalIPs[0]: 0.0.0.0/0 lets who can write a Service take any address: name the networks that are meant for it"},
		{"external addresses of a pool", "loadBalancer:\n  ipAddressPools: [{name: p, addresses: [192.0.2.0/28]}]\nl4:\n  externalIPs: [192.0.2.0/24]\n",
			"f.yaml:4: l4.externalIPs[0]: 192.0.2.0/24 overlaps 192.0.2.0/28 of pool \"p\": who can write a Service could take another's address"},
		{"SNAT addresses as external addresses", "l4:\n  externalIPs: [10.0.0.0/28]\ngroups:\n- name: a\n  snatAddresses: [10.0.0.8/30]\n",
			"f.yaml:5: groups[0].snatAddresses[0]: 10.0.0.8/30 overlaps 10.0.0.0/28 of l4.externalIPs: these are addresses on the nodes' network"},
		{"gateway of a pool", "loadBalancer:\n  ipAddressPools: [{name: p, addresses: [10.0.0.0/28]}]\ngroups:\n- name: a\n  nodesGateway: [10.0.0.1]\n",
			"f.yaml:5: groups[0].nodesGateway[0]: 10.0.0.1 is in 10.0.0.0/28 of pool \"p\": who can write a Service could take it from the nodes"},
		{"gateway as external address", "l4:\n  externalIPs: ['fd00::/64']\ngroups:\n- name: a\n  nodesGateway: ['fd00::1']\n",
			"f.yaml:5: groups[0].nodesGateway[0]: fd00::1 is in fd00::/64 of l4.externalIPs: who can write a Service could take it from the nodes"},
		{"external addresses of IPv4 in IPv6 form", "l4:\n  externalIPs: ['::ffff:192.0.2.0/120']\n",
			"f.yaml:2: l4.externalIPs[0]: ::ffff:192.0.2.0/120 is IPv4 in IPv6 form, which no address is in: write it as IPv4"},
		{"gateway of IPv4 in IPv6 form", "groups:\n- name: a\n  nodesGateway: ['::ffff:10.0.0.1']\n",
			"f.yaml:3: groups[0].nodesGateway[0]: ::ffff:10.0.0.1 is no address that nodes can route through"},
		{"gateway of two groups", "groups:\n- name: a\n  nodesGateway: [10.0.0.1]\n- name: b\n  nodesGateway: [10.0.0.1]\n",
			"f.yaml:5: groups[1].nodesGateway[0]: 10.0.0.1 is an earlier group's: an address moves with one group"},
		{"less than no connections", "l4:\n  conntrackMax: -1\n", "f.yaml:2: l4.conntrackMax: \"-1\" is not a number"},
		{"secrets", "clusters:\n- secrets: all\n", "f.yaml:2: clusters[0].secrets: \"all\" is not known: use none or named or namespaces or cluster"},
		{"cluster name", "clusters:\n- name: a/b\n", "f.yaml:2: clusters[0].name: \"a/b\" is not a name: use lower-case letters, digits and hyphens"},
		{"TLS version", "l7: {tls: {minVersion: 1.1}}\n", "f.yaml:1: l7.tls.minVersion: \"1.1\" is not known: use 1.2 or 1.3"},
		{"one port for both", "l7:\n  httpPort: 443\n", "f.yaml:2: l7.httpsPort: 443 is also l7.httpPort: give another, or 0 for no TLS"},
		{"default certificate", "l7:\n  tls: {defaultCertificate: wildcard}\n", "f.yaml:2: l7.tls.defaultCertificate: \"wildcard\" does not name a Secret: write namespace/name"},
		{"lease namespace", "status: {leaseNamespace: ''}\n", "f.yaml:1: status.leaseNamespace: \"\" is not the name of a namespace: give one in which the edge may keep a Lease"},
		{"status address", "status:\n  ingressAddresses: [edge]\n", "f.yaml:2: status.ingressAddresses[0]: \"edge\" is not an IP address"},
		{"loopback in the status", "status:\n  ingressAddresses: [127.0.0.1]\n", "f.yaml:2: status.ingressAddresses[0]: 127.0.0.1 is no address that clients can connect to"},
		{"two errors", "reach: x\nl4:\n  snat: maybe\n", "f.yaml:1: reach: \"x\" is not known: use auto or pods or nodes\nf.yaml:3: l4.snat: \"maybe\" is not known: use auto or always or never"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.yaml", []byte(tt.in))
			if got := fmt.Sprint(err); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestParseSetsWhatTheFileSays(t *testing.T) {
	c, err := Parse("f.yaml", []byte("edge: {name: a, admin: {address: '[::1]:1'}}\nl7: {httpPort: 8080, addresses: [192.0.2.2, 192.0.2.1], idleTimeout: 5s}\n"+
		"loadBalancer: {ipAddressPools: [{name: p, addresses: [192.0.2.0/28, 198.51.100.1-198.51.100.9]}]}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Edge.Name != "a" || c.Edge.Admin.Address.Port() != 1 || c.L7.IdleTimeout != 5*time.Second || c.L7.DrainTime != 10*time.Second {
		t.Errorf("got %+v", c)
	}
	if got := fmt.Sprint(c.L7.HTTPAddresses(), c.L7.HTTPSAddresses()); got != "[192.0.2.2:8080 192.0.2.1:8080] [192.0.2.2:443 192.0.2.1:443]" {
		t.Errorf("listens on %s", got)
	}
	if len(c.Pools) != 1 || len(c.Pools[0].Ranges) != 2 {
		t.Errorf("pools %v", c.Pools)
	}
}

func TestLoadNamesTheFileThatIsMissing(t *testing.T) {
	_, err := Load("/nonexistent/sallyport.yaml")
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/sallyport.yaml") {
		t.Errorf("error %v", err)
	}
}

func TestSampleIsTheDefault(t *testing.T) {
	const file = "../../../deploy/sallyport.yaml"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(file, data)
	if err != nil {
		t.Fatal(err)
	}
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", Default()); g != w {
		t.Errorf("the sample is\n%s\nthe default\n%s", g, w)
	}
	for key := range documented(reflect.ValueOf(Default()), "") {
		last := key[strings.LastIndexAny(key, ".]")+1:]
		if !strings.Contains(string(data), last+":") {
			t.Errorf("%s is not in the sample", key)
		}
	}
}

// TestEveryKeyIsDocumented holds the table of CONFIGURATION.md to the code: the same keys with the same defaults.
func TestEveryKeyIsDocumented(t *testing.T) {
	data, err := os.ReadFile("../../../deploy/CONFIGURATION.md")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z][^`]*)` \\| (.*?) \\| .+ \\|$").FindAllStringSubmatch(string(data), -1) {
		if !strings.Contains(m[1], "/") { // annotations have a slash
			table[m[1]] = strings.Trim(m[2], "`")
		}
	}
	want := documented(reflect.ValueOf(Default()), "")
	if len(want) < 20 {
		t.Fatalf("only %d keys found in the code", len(want))
	}
	for key, value := range want {
		switch got, ok := table[key]; {
		case !ok:
			t.Errorf("%s is not documented", key)
		case key == "edge.name" || key == "clusters" || key == "clusters[].secrets": // words, or given by Access
		case got != value && (got != "none" && got != "required" || value != "" && value != "[]"):
			t.Errorf("%s: default %q in the table, %q in the code", key, got, value)
		}
		delete(table, key)
	}
	for key := range table {
		t.Errorf("%s is documented, but not a key", key)
	}
}

// documented gives every key of v with its default as text; items of lists are "key[]".
func documented(v reflect.Value, key string) map[string]string {
	out := map[string]string{}
	if v.Kind() != reflect.Struct || v.Type().PkgPath() != reflect.TypeFor[Config]().PkgPath() {
		out[key] = fmt.Sprint(v)
		return out
	}
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == "-" {
			continue
		}
		f := v.Field(i)
		path := join(key, name)
		if f.Kind() == reflect.Slice && f.Type().Elem().PkgPath() == v.Type().PkgPath() {
			out[path] = fmt.Sprint(f)
			f, path = reflect.Zero(f.Type().Elem()), path+"[]"
		}
		maps.Copy(out, documented(f, path))
	}
	return out
}
