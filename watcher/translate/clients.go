package translate

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"sallyport/watcher/model"
)

// Annotations of Services on how clients are treated.
const (
	// SessionAffinity asks, with the value "timeout", for sessionAffinityConfig.clientIP.timeoutSeconds to be kept to exactly.
	SessionAffinity = "sallyport.io/session-affinity"
	// LimitNewConnections is how many new connections a client may make in a second.
	LimitNewConnections = "sallyport.io/limit-new-connections"
	// LimitConnectionsPerClient is how many connections a client may have at one time.
	LimitConnectionsPerClient = "sallyport.io/limit-connections-per-client"
	// LimitConnections is how many connections all clients together may have at one time.
	LimitConnections = "sallyport.io/limit-connections"
	// ProxyProtocol asks for the PROXY protocol towards endpoints: "v1" or "v2".
	ProxyProtocol = "sallyport.io/proxy-protocol"
)

// clients reads which clients are let in, and how they are treated.
func (s *service) clients() {
	if isHeadless(s.Service) {
		return
	}
	b := s.result
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		b.SourceRanges = s.sourceRanges()
	}
	b.Affinity = s.affinity()
	b.Limits = s.limits()
	b.ProxyProtocol = s.proxyProtocol()
	if b.Local && hasNodePorts(s.Service) && !s.o.KeepsSource && b.ProxyProtocol == 0 {
		s.complain("spec.externalTrafficPolicy", model.ReasonUnsupported, "with Local, endpoints are to see the addresses of clients, "+
			"and this edge puts its own in their place: have the nodes answer by way of the edge (l4.returnPath: edge)")
	}
}

// maxSourceRanges is how many networks a Service may name; each is a rule.
const maxSourceRanges = 4096

// sourceRanges reads spec.loadBalancerSourceRanges, or, if that is empty, the annotation that came before it. nil lets
// everyone in. What cannot be read lets nobody in.
func (s *service) sourceRanges() *model.SourceRanges {
	field, list := "spec.loadBalancerSourceRanges", s.Spec.LoadBalancerSourceRanges
	at := func(i int) string { return indexed(field, i, "") }
	if len(list) == 0 {
		text := strings.TrimSpace(s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey])
		if text == "" {
			return nil
		}
		field, list = annotationField(corev1.AnnotationLoadBalancerSourceRangesKey), strings.Split(text, ",")
		at = func(int) string { return field }
	}
	if len(list) > maxSourceRanges {
		s.complain(field, model.ReasonUnsupported, "%d networks are given, and a Service has %d at most: the others are not let in", len(list), maxSourceRanges)
		list = list[:maxSourceRanges]
	}
	var all []netip.Prefix
	for i, text := range list {
		p, ok := parsePrefix(strings.TrimSpace(text))
		if !ok {
			s.complain(at(i), model.ReasonInvalidField, "%q is not a network, such as 198.51.100.0/24: nobody is let in by it", text)
			continue
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		s.complain(field, model.ReasonInvalidField, "none of the networks can be read, so nobody is let in: correct or remove them")
	}
	return &model.SourceRanges{Prefixes: disjoint(all)}
}

// parsePrefix reads a network as Kubernetes does: bits of the host are cleared, and numbers may have leading zeros.
func parsePrefix(s string) (_ netip.Prefix, ok bool) {
	_, network, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(network.IP)
	bits, _ := network.Mask.Size()
	if addr.Is4In6() {
		addr, bits = addr.Unmap(), bits-96
	}
	p := netip.PrefixFrom(addr, bits)
	return p, ok && p.IsValid()
}

// disjoint orders the networks and leaves out those within others.
func disjoint(all []netip.Prefix) []netip.Prefix {
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	out := all[:0]
	for _, p := range all {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// maxAffinity is what the API server takes as timeoutSeconds at most.
const maxAffinity = 86400

// affinity reads spec.sessionAffinity.
func (s *service) affinity() *model.Affinity {
	annotation, exact := s.Annotations[SessionAffinity]
	if exact && annotation != "timeout" {
		s.complain(annotationField(SessionAffinity), model.ReasonInvalidField, `%q is not "timeout": it is taken as if it were not there`, annotation)
		exact = false
	}
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		if exact {
			s.complain(annotationField(SessionAffinity), model.ReasonInvalidField, "the Service has no affinity: set spec.sessionAffinity: ClientIP")
		}
		return nil
	}
	const standard = corev1.DefaultClientIPServiceAffinitySeconds
	seconds := standard
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil {
		seconds = value(c.ClientIP.TimeoutSeconds, standard)
	}
	if seconds < 1 || seconds > maxAffinity {
		s.complain("spec.sessionAffinityConfig.clientIP.timeoutSeconds", model.ReasonInvalidField,
			"%d is not between 1 and %d: %d is used", seconds, maxAffinity, standard)
		seconds = standard
	}
	return &model.Affinity{Timeout: time.Duration(seconds) * time.Second, Exact: exact}
}

// What a limit may be at most: what the kernel's matches take for a rate, and more connections than it can follow.
const (
	maxRate        = 1_000_000
	maxConnections = 1_000_000_000
)

// limits reads the annotations that protect endpoints, or is nil if there is none.
func (s *service) limits() *model.Limits {
	l := model.Limits{
		NewPerSecond: s.limit(LimitNewConnections, maxRate),
		PerClient:    s.limit(LimitConnectionsPerClient, maxConnections),
		Total:        s.limit(LimitConnections, maxConnections),
	}
	if l == (model.Limits{}) {
		return nil
	}
	return &l
}

// limit reads an annotation, or is 0 if it gives none.
func (s *service) limit(key string, most uint64) uint32 {
	text, ok := s.Annotations[key]
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
	if err != nil || n == 0 || n > most {
		s.complain(annotationField(key), model.ReasonInvalidField, "%q is not a number between 1 and %d: there is no such limit", text, most)
		return 0
	}
	return uint32(n)
}

// proxyProtocol reads the version of the PROXY protocol that endpoints are to be spoken to with, or is 0 for none.
func (s *service) proxyProtocol() uint8 {
	text, ok := s.Annotations[ProxyProtocol]
	version := map[string]uint8{"v1": 1, "v2": 2}[text]
	switch {
	case !ok:
	case version == 0:
		s.complain(annotationField(ProxyProtocol), model.ReasonInvalidField, "%q is neither v1 nor v2: endpoints are not told the address of the client", text)
	case !s.o.ProxyProtocol:
		s.complain(annotationField(ProxyProtocol), model.ReasonUnsupported, "this dataplane does not speak it, as connections pass through the kernel: use l4.dataplane: userspace")
		return 0
	}
	return version
}
