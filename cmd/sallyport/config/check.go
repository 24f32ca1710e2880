package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"sallyport/lb"
	"sallyport/watcher/model"
)

// Check reports what is wrong with a configuration that flags have changed after Parse.
func (c *Config) Check() error {
	p := &problems{}
	c.check(p)
	return p.err()
}

// check reports every value that decodes but cannot be honoured, and sets Pools.
func (c *Config) check(p *problems) {
	c.checkEdge(p)
	p.oneOf("edge.log.format", c.Edge.Log.Format, "text", "json")
	p.oneOf("edge.log.level", c.Edge.Log.Level, "debug", "info", "warn", "error")
	p.oneOf("reach", string(c.Reach), string(model.ReachAuto), string(model.ReachPods), string(model.ReachNodes))
	c.checkClusters(p)
	c.checkL7(p)
	c.checkTLS(p)
	c.checkStatus(p)
	c.Pools = c.pools(p)
	c.checkL4(p)
	c.checkGroups(p)
}

// maxSocketPath is the longest path of a unix socket (unix(7): sun_path, with a zero byte at its end).
const maxSocketPath = 107

func (c *Config) checkEdge(p *problems) {
	if strings.TrimSpace(c.Edge.Name) == "" {
		p.add("edge.name", "empty: give this edge a name, or leave the key out for the hostname")
	}
	if n := len(c.Edge.Admin.Socket); n > maxSocketPath {
		p.add("edge.admin.socket", "a path of %d bytes is too long for a socket: give one of at most %d", n, maxSocketPath)
	}
	if admin := c.Edge.Admin.Address; c.servesL7At(admin) {
		p.add("edge.admin.address", "%v is where HTTP or HTTPS is served (l7.addresses): give another port", admin)
	}
}

// servesL7At says whether L7 listens at an address, or could not while another listens there.
func (c *Config) servesL7At(at netip.AddrPort) bool {
	if !c.L7.Enabled || at.Port() == 0 || at.Port() != c.L7.HTTPPort && at.Port() != c.L7.HTTPSPort {
		return false
	}
	return slices.ContainsFunc(c.L7.Addresses, func(text string) bool {
		a, err := netip.ParseAddr(text)
		return isEveryAddress(text) || err == nil && (at.Addr().IsUnspecified() || a == at.Addr())
	})
}

func (c *Config) checkClusters(p *problems) {
	if len(c.Clusters) > 1 {
		p.add("clusters[1]", "only one cluster is served by an edge: remove the others, or run an edge for each")
	}
	for i, k := range c.Clusters {
		key := fmt.Sprintf("clusters[%d]", i)
		if k.Secrets != "" { // named
			p.oneOf(key+".secrets", k.Secrets, SecretsNone, SecretsNamed, SecretsNamespaces, SecretsCluster)
		}
		if k.Name != "" && !isName(k.Name) { // it becomes part of a file's name
			p.add(key+".name", "%q is not a name: use lower-case letters, digits and hyphens", k.Name)
		}
	}
}

// isName says whether a text is a Kubernetes name, an RFC 1123 label.
func isName(s string) bool { return len(validation.IsDNS1123Label(s)) == 0 }

func (c *Config) checkL7(p *problems) {
	if c.L7.Enabled && c.L7.HTTPPort == 0 {
		p.add("l7.httpPort", "0 is not a port: give one from 1 to 65535, or set l7.enabled: false")
	}
	if c.L7.Enabled && len(c.L7.Addresses) == 0 {
		p.add("l7.addresses", "empty: name an IP address of this machine, or %q for all of them", EdgeAddresses)
	}
	for i, a := range c.L7.Addresses {
		key := fmt.Sprintf("l7.addresses[%d]", i)
		there := func(earlier string) bool { return earlier == a || isEveryAddress(earlier) }
		if _, err := netip.ParseAddr(a); err != nil && a != EdgeAddresses {
			p.add(key, "%q is neither an IP address nor %q", a, EdgeAddresses)
		} else if slices.ContainsFunc(c.L7.Addresses[:i], there) || i > 0 && isEveryAddress(a) {
			p.add(key, "%s is there already: name each address once, or only %q for all of them", a, EdgeAddresses)
		}
	}
	if c.L7.MaxRequestHeaderBytes < 1024 {
		p.add("l7.maxRequestHeaderBytes", "%d is too small for real clients: give at least 1024", c.L7.MaxRequestHeaderBytes)
	}
	p.prefixes("l7.trustedProxies", c.L7.TrustedProxies)
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"l7.requestHeaderTimeout", c.L7.RequestHeaderTimeout}, {"l7.idleTimeout", c.L7.IdleTimeout},
		{"l7.connectTimeout", c.L7.ConnectTimeout}, {"l7.responseHeaderTimeout", c.L7.ResponseHeaderTimeout},
		{"l7.upgradeIdleTimeout", c.L7.UpgradeIdleTimeout}, {"l7.drainTime", c.L7.DrainTime},
	} {
		if d.value <= 0 {
			p.add(d.key, "%v is not a time to wait: give a positive duration such as 10s", d.value)
		}
	}
}

// isEveryAddress says whether an item of l7.addresses means all addresses of this machine.
func isEveryAddress(text string) bool {
	a, err := netip.ParseAddr(text)
	return text == EdgeAddresses || err == nil && a.IsUnspecified()
}

func (c *Config) checkTLS(p *problems) {
	p.oneOf("l7.tls.minVersion", c.L7.TLS.MinVersion, slices.Sorted(maps.Keys(tlsVersions))...)
	if c.L7.Enabled && c.L7.HTTPSPort != 0 && c.L7.HTTPSPort == c.L7.HTTPPort {
		p.add("l7.httpsPort", "%d is also l7.httpPort: give another, or 0 for no TLS", c.L7.HTTPSPort)
	}
	if text := c.L7.TLS.DefaultCertificate; text != "" {
		n := c.L7.DefaultCertificateName()
		if !isName(n.Namespace) || len(validation.IsDNS1123Subdomain(n.Name)) > 0 {
			p.add("l7.tls.defaultCertificate", "%q does not name a Secret: write namespace/name", text)
		}
	}
}

func (c *Config) checkStatus(p *problems) {
	if c.Status.Enabled && !isName(c.Status.LeaseNamespace) {
		p.add("status.leaseNamespace", "%q is not the name of a namespace: give one in which the edge may keep a Lease", c.Status.LeaseNamespace)
	}
	for i, a := range c.Status.IngressAddresses {
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
			p.add(fmt.Sprintf("status.ingressAddresses[%d]", i), "%v is no address that clients can connect to", a)
		}
	}
}

func (p *problems) oneOf(key, got string, allowed ...string) {
	if !slices.Contains(allowed, got) {
		p.add(key, "%q is not known: use %s", got, strings.Join(allowed, " or "))
	}
}

// prefixes refuses CIDRs with host bits: whoever writes 10.0.0.1/24 means either a host or a network.
func (p *problems) prefixes(key string, list []netip.Prefix) {
	for i, x := range list {
		switch at := fmt.Sprintf("%s[%d]", key, i); {
		case x.Addr().Is4In6():
			p.add(at, "%v is IPv4 in IPv6 form, which no address is in: write it as IPv4", x)
		case x != x.Masked():
			p.add(at, "%v has host bits set; did you mean %v?", x, x.Masked())
		}
	}
}

// pools parses loadBalancer.ipAddressPools.
func (c *Config) pools(p *problems) []lb.Pool {
	var out []lb.Pool
	names := map[string]int{}
	for i, ip := range c.LoadBalancer.IPAddressPools {
		key := fmt.Sprintf("loadBalancer.ipAddressPools[%d]", i)
		if ip.Name == "" {
			p.add(key+".name", "missing: give the pool a name")
		}
		if first, again := names[ip.Name]; again {
			p.add(key+".name", "%q is also the name of ipAddressPools[%d]: names are unique", ip.Name, first)
		}
		names[ip.Name] = i
		out = append(out, lb.Pool{Name: ip.Name, Ranges: p.ranges(key, ip.Addresses, out)})
	}
	return out
}

// ranges parses one pool's addresses, which must not overlap each other or an earlier pool's.
func (p *problems) ranges(key string, addresses []string, earlier []lb.Pool) []lb.Range {
	var out []lb.Range
	if len(addresses) == 0 {
		p.add(key+".addresses", "empty: give CIDRs or ranges, such as 192.0.2.0/28 or 192.0.2.10-192.0.2.19")
	}
	for i, text := range addresses {
		at := fmt.Sprintf("%s.addresses[%d]", key, i)
		r, err := lb.ParseRange(text)
		if err != nil {
			p.add(at, "%v", err)
			continue
		}
		if other := overlapping(r, append(slices.Clone(earlier), lb.Pool{Name: "", Ranges: out})); other != "" {
			p.add(at, "%s overlaps %s: an address belongs to one pool", text, other)
			continue
		}
		out = append(out, r)
	}
	return out
}

// overlapping names the range that r has addresses in common with, or "".
func overlapping(r lb.Range, pools []lb.Pool) string {
	for _, pool := range pools {
		for _, o := range pool.Ranges {
			if !r.Overlaps(o) {
				continue
			}
			if pool.Name == "" {
				return fmt.Sprintf("%v of the same pool", o)
			}
			return fmt.Sprintf("%v of pool %q", o, pool.Name)
		}
	}
	return ""
}

func hostPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
