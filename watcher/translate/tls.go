package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// SSLRedirect is the annotation on an Ingress that says whether requests in clear for its hosts with TLS are answered by a
// redirect to https: "true" or "false", instead of what the configuration says.
const SSLRedirect = "sallyport.io/ssl-redirect"

// A hostClaim is a host that an entry of an Ingress' spec.tls names, and the certificate that it has for it.
type hostClaim struct {
	host  string
	pair  *keyPair // nil if it is to have the default certificate
	by    *ingress
	field tlsField
}

// A tlsField is spec.tls[entry].hosts[host], or spec.tls[entry].secretName if host is noHost. Its text is only made where it is
// told.
type tlsField struct{ entry, host int }

const noHost = -1

// String gives the path of the field.
func (f tlsField) String() string {
	if f.host == noHost {
		return indexed("spec.tls", f.entry, ".secretName")
	}
	return indexed(indexed("spec.tls", f.entry, ".hosts"), f.host, "")
}

// tls claims the hosts of spec.tls for their certificates, and sets g.secure.
func (g *ingress) tls() {
	if len(g.Spec.TLS) > 0 && !g.o.TLS {
		g.complain("spec.tls", model.ReasonUnsupported, "TLS is not served: the hosts are served by plain HTTP only")
		return
	}
	entries := tlsEntries(g.Ingress)
	if len(entries) < len(g.Spec.TLS) {
		g.complain("spec.tls", model.ReasonUnsupported, "%d entries are given, and an Ingress has %d at most: the others are left out", len(g.Spec.TLS), maxTLSEntries)
	}
	for i := range entries {
		g.tlsEntry(i)
	}
	slices.Sort(g.secure)
}

// maxTLSEntries is how many entries of spec.tls count. Each may name a Secret, and that is a watch.
const maxTLSEntries = 256

func tlsEntries(ing *networkingv1.Ingress) []networkingv1.IngressTLS {
	return ing.Spec.TLS[:min(len(ing.Spec.TLS), maxTLSEntries)]
}

// tlsEntry does spec.tls[i]. One that names no hosts is for those of its certificate.
func (g *ingress) tlsEntry(i int) {
	e, field := &g.Spec.TLS[i], tlsField{i, noHost}
	secret := model.ObjectRef{Cluster: g.in.Name, Kind: "Secret", Namespace: g.Namespace, Name: e.SecretName}
	pair := g.keyPairOf(secret, field)
	if len(e.Hosts) == 0 && pair != nil {
		if len(pair.hosts) == 0 {
			g.complain(field.String(), model.ReasonInvalidCertificate,
				"the certificate of Secret %q is for no DNS name: list the hosts in spec.tls[%d].hosts", e.SecretName, i)
		}
		for _, host := range pair.hosts {
			g.claim(host, pair, field)
		}
	}
	for j := range e.Hosts {
		field.host = j
		host, why := normalizeHost(e.Hosts[j])
		if host == "" {
			g.complain(field.String(), model.ReasonInvalidField, "%q %s: it gets no certificate", e.Hosts[j], emptyHost(why))
			continue
		}
		g.claim(host, pair, field)
	}
}

// emptyHost is what is wrong with a host of spec.tls, where an empty one does not mean all of them.
func emptyHost(why string) string {
	if why == "" {
		return "is not a DNS name"
	}
	return why
}

// claim takes down that the host has TLS, and the certificate that it wants, if there is one.
func (g *ingress) claim(host string, pair *keyPair, field tlsField) {
	g.secure = append(g.secure, host)
	g.hostClaims = append(g.hostClaims, hostClaim{host, pair, g, field})
}

// keyPairOf is the certificate of a Secret that a field of the Ingress names. It returns nil, and says why, if there is
// none to use: the default certificate is presented then. So it is, with nothing to say, where no Secret is named.
func (g *ingress) keyPairOf(secret model.ObjectRef, field tlsField) *keyPair {
	if secret.Name == "" {
		return nil
	}
	pair, reason, why := g.keyPair(secret)
	if why != "" {
		g.complain(field.String(), reason, "%s; the default certificate is presented", why)
		return nil
	}
	return pair
}

// redirects says whether requests in clear for the Ingress' hosts with TLS are redirected.
func (g *ingress) redirects() bool {
	switch v, given := g.Annotations[SSLRedirect]; {
	case v == "true":
		return true
	case v == "false":
		return false
	case given:
		g.complain(annotationField(SSLRedirect), model.ReasonInvalidField, `%q is neither "true" nor "false": ignored`, v)
	}
	return g.o.RedirectHTTPS
}

// isSecure says whether spec.tls names the host of a route, or a wildcard that covers it.
func (g *ingress) isSecure(host string) bool {
	_, parent, _ := strings.Cut(host, ".")
	return contains(g.secure, host) || contains(g.secure, "*."+parent)
}

// resolveHosts gives each host its certificate: the one that the oldest of the Ingresses has for it, or, if that has none, the
// next one of its namespace. Others cannot give it one, or who has the default certificate could be given another's. It
// returns the hosts that are to have the default certificate.
func resolveHosts(s *model.Snapshot, claims []hostClaim) (defaulted []string) {
	slices.SortStableFunc(claims, func(a, b hostClaim) int {
		return cmp.Or(cmp.Compare(a.host, b.host), created(a.by).Compare(created(b.by)), a.by.self.Compare(b.by.self))
	})
	index := make(map[*keyPair]int, len(claims)) // into s.Certificates
	for len(claims) > 0 {
		of := claims[:1] // those of one host
		for len(of) < len(claims) && claims[len(of)].host == of[0].host {
			of = claims[:len(of)+1]
		}
		claims = claims[len(of):]
		winner := winnerOf(of)
		for i := range of {
			of[i].explainLost(s, winner)
		}
		if winner.pair == nil {
			defaulted = append(defaulted, winner.host)
			continue
		}
		n, known := index[winner.pair]
		if !known {
			n = len(s.Certificates)
			index[winner.pair] = n
			s.Certificates = append(s.Certificates, winner.pair.certificate())
		}
		s.Certificates[n].Hosts = append(s.Certificates[n].Hosts, winner.host)
		winner.explainUncovered(s)
	}
	slices.SortFunc(s.Certificates, func(a, b model.Certificate) int { return a.Ref.Compare(b.Ref) })
	return defaulted
}

// winnerOf picks the claim that counts of those of one host, which are ordered.
func winnerOf(claims []hostClaim) *hostClaim {
	first := &claims[0]
	for i := range claims {
		c := &claims[i]
		if c.pair != nil && c.by.self.Cluster == first.by.self.Cluster && c.by.Namespace == first.by.Namespace {
			return c
		}
	}
	return first
}

// explainLost records that the host presents another certificate than the one claimed.
func (c *hostClaim) explainLost(s *model.Snapshot, winner *hostClaim) {
	if c.pair == nil || c.pair == winner.pair {
		return
	}
	what, why := "the default certificate", fmt.Sprintf("as %v comes first by age and name and has no other: only its namespace can name a Secret for it", winner.by.self)
	if winner.pair != nil {
		what, why = "the certificate of "+winner.pair.secret.String(), fmt.Sprintf("named by %v, which comes first by age and name: name one Secret for it", winner.by.self)
	}
	if c.by == winner.by {
		why = "which stands first in this Ingress: name one Secret for it"
	}
	s.Problems = append(s.Problems, model.Problem{Object: c.by.self, Field: c.field.String(), Reason: model.ReasonDuplicateHost,
		Message: fmt.Sprintf("%s presents %s, %s", c.host, what, why)})
}

// explainUncovered records that the host presents a certificate that clients will not take for it. It does all the same:
// there is no better one.
func (c *hostClaim) explainUncovered(s *model.Snapshot) {
	if c.pair.covers(c.host) {
		return
	}
	s.Problems = append(s.Problems, model.Problem{Object: c.by.self, Field: c.field.String(), Reason: model.ReasonInvalidCertificate,
		Message: fmt.Sprintf("the certificate of %v is not for %s but for %s: clients will refuse it", c.pair.secret, c.host, few(c.pair.hosts))})
}

// resolveDefault marks the certificate that is presented where no other is. Of several clusters the first one that has
// the Secret counts. For the hosts that are to have it, and that it is for, it goes before wildcards, which may be
// another's.
func resolveDefault(s *model.Snapshot, clusters []*translator, o Options, hosts []string) {
	if !o.TLS || o.DefaultCertificate == (objects.Name{}) || len(clusters) == 0 {
		return
	}
	i := max(0, slices.IndexFunc(clusters, func(t *translator) bool { return t.secrets[o.DefaultCertificate] != nil }))
	ref := model.ObjectRef{Cluster: clusters[i].in.Name, Kind: "Secret", Namespace: o.DefaultCertificate.Namespace, Name: o.DefaultCertificate.Name}
	pair, reason, why := clusters[i].keyPair(ref)
	if why != "" {
		clusters[i].problem(ref, "", reason, "%s; l7.tls.defaultCertificate names it, and a self-signed certificate is presented instead", why)
		return
	}
	at, found := slices.BinarySearchFunc(s.Certificates, ref, func(c model.Certificate, r model.ObjectRef) int { return c.Ref.Compare(r) })
	if !found {
		s.Certificates = slices.Insert(s.Certificates, at, pair.certificate())
	}
	c := &s.Certificates[at]
	c.Default = true
	for _, host := range hosts {
		if pair.covers(host) {
			c.Hosts = append(c.Hosts, host)
		}
	}
	slices.Sort(c.Hosts)
}

// few shows a few of the names, for messages.
func few(names []string) string {
	const most = 4
	switch n := len(names); {
	case n == 0:
		return "no DNS name"
	case n > most:
		return strings.Join(names[:most], ", ") + ", ..."
	default:
		return strings.Join(names, ", ")
	}
}
