package model

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// WriteText writes the snapshot for people: a line for each node, service, service port, endpoint, route, certificate,
// status and problem. Equal snapshots give equal text. The Generation, statuses that say nothing and all that is secret
// are left out.
func (s *Snapshot) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	if s.Stale {
		fmt.Fprintln(b, "stale")
	}
	for i := range s.Nodes {
		fmt.Fprintln(b, s.Nodes[i].text())
	}
	for i := range s.Services {
		s.Services[i].writeText(b)
	}
	for i := range s.Routes {
		fmt.Fprintln(b, s.Routes[i].text())
	}
	for i := range s.Certificates {
		fmt.Fprintln(b, s.Certificates[i].text())
	}
	for i := range s.Statuses {
		if st := &s.Statuses[i]; st.Marked || len(st.Addresses) > 0 {
			fmt.Fprintln(b, st.text())
		}
	}
	for _, p := range s.Problems {
		fmt.Fprintln(b, "problem", p)
	}
	return b.Flush() // holds the first error of all the writes above
}

// path gives "cluster:namespace/name", without the parts that are empty.
func (r ObjectRef) path() string { return strings.TrimPrefix(r.String(), r.Kind+" ") }

func (n *Node) text() string {
	f := fields{"node", n.Ref.path(), "NotReady", "reach " + string(n.Reach)}
	if n.Ready {
		f[2] = "Ready"
	}
	if n.Leaving {
		f = append(f, "leaving")
	}
	f.add("InternalIP", join(n.InternalIPs))
	f.add("podCIDRs", join(n.PodCIDRs))
	f.add("zone", n.Zone)
	return f.String()
}

func (s *Service) writeText(w io.Writer) {
	f := fields{"service", s.Ref.path()}
	if s.LoadBalancer {
		f = append(f, "LoadBalancer")
	}
	if len(s.RequestedVIPs) > 0 {
		f.add("requests", join(s.RequestedVIPs)+" by "+s.RequestField)
	}
	f.add("VIPs", join(s.VIPs))
	f.add("externalIPs", join(s.ExternalIPs))
	f.add("clusterIPs", join(s.ClusterIPs))
	if s.Local {
		f = append(f, "Local")
	}
	if s.HealthCheckNodePort != 0 {
		f.add("healthCheckNodePort", strconv.Itoa(int(s.HealthCheckNodePort)))
	}
	f = append(f, s.SourceRanges.String(), s.Affinity.String(), s.Limits.String())
	if s.ProxyProtocol != 0 {
		f.add("PROXY", "v"+strconv.Itoa(int(s.ProxyProtocol)))
	}
	fmt.Fprintln(w, f)
	for i := range s.Ports {
		s.Ports[i].writeText(w)
	}
}

// String gives "from 198.51.100.0/24,2001:db8::/64", "from nobody", or nothing for nil.
func (r *SourceRanges) String() string {
	switch {
	case r == nil:
		return ""
	case len(r.Prefixes) == 0:
		return "from nobody"
	}
	return "from " + join(r.Prefixes)
}

// String gives "affinity 3h0m0s", with "exactly" if it is Exact, or nothing for nil.
func (a *Affinity) String() string {
	switch {
	case a == nil:
		return ""
	case a.Exact:
		return "affinity exactly " + a.Timeout.String()
	}
	return "affinity " + a.Timeout.String()
}

// String gives "limits 20/s 100/client 10000", without those that are none, or nothing for nil.
func (l *Limits) String() string {
	if l == nil {
		return ""
	}
	f := fields{"limits"}
	for _, v := range []struct {
		most uint32
		unit string
	}{{l.NewPerSecond, "/s"}, {l.PerClient, "/client"}, {l.Total, ""}} {
		if v.most != 0 {
			f = append(f, strconv.FormatUint(uint64(v.most), 10)+v.unit)
		}
	}
	return f.String()
}

func (p *ServicePort) writeText(w io.Writer) {
	f := fields{"  port", p.Name, strconv.Itoa(int(p.Port)) + "/" + string(p.Protocol)}
	if p.NodePort != 0 {
		f.add("nodePort", strconv.Itoa(int(p.NodePort)))
	}
	to := make(fields, 0, len(p.Destinations))
	for _, d := range p.Destinations {
		to = append(to, d.text())
	}
	if len(to) == 0 {
		to = fields{"none"}
	}
	fmt.Fprintln(w, f.String()+" -> "+strings.Join(to, ", "))
	for _, e := range p.Endpoints {
		fmt.Fprintln(w, e.text())
	}
}

func (d Destination) text() string {
	f := fields{d.Addr.String()}
	if d.Reach == ReachNodes {
		f.add("of node", d.Node)
	}
	if d.Weight != 0 {
		f.add("weight", strconv.Itoa(int(d.Weight)))
	}
	return f.String()
}

func (e Endpoint) text() string {
	f := fields{"    endpoint", e.Addr.String()}
	for _, c := range []struct {
		name string
		on   bool
	}{{"ready", e.Ready}, {"serving", e.Serving}, {"terminating", e.Terminating},
		{"hinted", e.Hinted && !e.HintedHere}, {"hinted-here", e.HintedHere}} {
		if c.on {
			f = append(f, c.name)
		}
	}
	f.add("pod", e.Pod)
	f.add("node", e.Node)
	f.add("zone", e.Zone)
	return f.String()
}

func (r *Route) text() string {
	host := r.Host
	if host == "" {
		host = "any-host"
	}
	to := make(fields, 0, len(r.Backends))
	for _, b := range r.Backends {
		t := b.Service.path() + ":" + strconv.Itoa(int(b.Port))
		if len(r.Backends) > 1 {
			t += " weight " + strconv.Itoa(b.Weight)
		}
		to = append(to, t)
	}
	if len(to) == 0 {
		to = fields{"none"}
	}
	f := fields{"route", host, string(r.Match), r.Path, "->", strings.Join(to, ", "), "by", r.Ref.String()}
	if r.RedirectHTTPS {
		f = append(f, "redirect https")
	}
	return f.String()
}

func (c *Certificate) text() string {
	f := fields{"certificate", c.Ref.path()}
	f.add("hosts", strings.Join(c.Hosts, ","))
	f.add("expires", c.NotAfter.Format(time.RFC3339))
	if c.Default {
		f = append(f, "default")
	}
	return f.String()
}

func (s *Status) text() string {
	f := fields{"status", s.Ref.String()}
	if s.Served {
		f = append(f, "served")
	}
	if s.Marked {
		f = append(f, "marked")
	}
	addrs := make([]string, 0, len(s.Addresses))
	for _, a := range s.Addresses {
		addrs = append(addrs, a.text())
	}
	f.add("addresses", strings.Join(addrs, ","))
	return f.String()
}

func (a StatusAddress) text() string {
	f := fields{a.Hostname}
	if a.IP.IsValid() {
		f = fields{a.IP.String(), a.Hostname}
	}
	f.add("mode", a.IPMode)
	return f.String()
}

// fields are the words of a line; empty ones are left out.
type fields []string

// add appends a name and its value, unless the value is empty.
func (f *fields) add(name, value string) {
	if value != "" {
		*f = append(*f, name, value)
	}
}

// String joins the words by single spaces.
func (f fields) String() string {
	var b strings.Builder
	for _, s := range f {
		if s == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	}
	return b.String()
}

// join lists the values, separated by commas.
func join[T netip.Addr | netip.Prefix](values []T) string {
	s := make([]string, 0, len(values))
	for _, v := range values {
		s = append(s, fmt.Sprint(v))
	}
	return strings.Join(s, ",")
}
