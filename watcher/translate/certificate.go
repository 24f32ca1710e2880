package translate

import (
	"bytes"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// A CertificateCache remembers the certificates of the last translation by the content of their Secrets, because reading
// them takes longer than all of the rest. What a translation did not use is forgotten. The zero value is ready for use,
// and so is nil, which remembers nothing. It is safe for concurrent use.
type CertificateCache struct{ last atomic.Pointer[keyPairs] }

// keyPairs are the certificates that one translation uses, read once each.
type keyPairs struct {
	before map[model.ObjectRef]*keyPair // of the translation before
	now    map[model.ObjectRef]*keyPair
}

// A keyPair is what a Secret of type kubernetes.io/tls holds.
type keyPair struct {
	secret   model.ObjectRef
	crt, key []byte           // as in the Secret
	pair     *tls.Certificate // nil if it is unusable
	hosts    []string         // the DNS names of the certificate, as in Route.Host, ordered
	why      string           // it is unusable, or is empty
}

// round begins a translation.
func (c *CertificateCache) round() *keyPairs {
	var p keyPairs
	if c != nil {
		if last := c.last.Load(); last != nil {
			p.before = last.now
		}
	}
	p.now = make(map[model.ObjectRef]*keyPair, len(p.before))
	return &p
}

// keep ends a translation.
func (c *CertificateCache) keep(p *keyPairs) {
	if c != nil {
		c.last.Store(&keyPairs{now: p.now})
	}
}

// of is the key pair of a Secret.
func (p *keyPairs) of(ref model.ObjectRef, s *corev1.Secret) *keyPair {
	if k := p.now[ref]; k != nil {
		return k
	}
	k := p.before[ref]
	if k == nil || !k.isOf(s) {
		k = parseKeyPair(ref, s)
	}
	p.now[ref] = k
	return k
}

func (k *keyPair) isOf(s *corev1.Secret) bool {
	return bytes.Equal(k.crt, s.Data[corev1.TLSCertKey]) && bytes.Equal(k.key, s.Data[corev1.TLSPrivateKeyKey])
}

// parseKeyPair reads a Secret. Nothing of the key is in why.
func parseKeyPair(ref model.ObjectRef, s *corev1.Secret) *keyPair {
	k := &keyPair{secret: ref, crt: s.Data[corev1.TLSCertKey], key: s.Data[corev1.TLSPrivateKeyKey]}
	pair, err := tls.X509KeyPair(k.crt, k.key)
	switch {
	case len(k.crt) == 0:
		k.why = "has no tls.crt"
	case len(k.key) == 0:
		k.why = "has no tls.key"
	case err != nil:
		k.why = "has no certificate and key that can be used: " + brief(strings.TrimPrefix(err.Error(), "tls: "), 200)
	default:
		if k.why = tooCostly(&pair); k.why == "" {
			k.pair, k.hosts = &pair, certificateHosts(pair.Leaf.DNSNames)
		}
	}
	return k
}

// Bounds of what a handshake may cost, since all hosts share the edge and a Secret is one tenant's.
const (
	maxRSABits = 4096       // public authorities sign no longer ones; 8192 bits take 40 times as long, 16384 seconds
	maxChain   = 100 * 1024 // bytes; OpenSSL's clients take no more (SSL_CTX_set_max_cert_list)
)

// tooCostly says why a certificate that could be used is not, or is empty.
func tooCostly(pair *tls.Certificate) string {
	if key, ok := pair.Leaf.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > maxRSABits {
		return fmt.Sprintf("has an RSA key of %d bits, with which each handshake would take long: use one of at most %d, or ECDSA", key.N.BitLen(), maxRSABits)
	}
	chain := 0
	for _, der := range pair.Certificate {
		chain += len(der)
	}
	if chain > maxChain {
		return fmt.Sprintf("has certificates of %d bytes in tls.crt, more than the %d that clients take: leave in it what leads to the root", chain, maxChain)
	}
	return ""
}

// brief bounds what others have a say in the length of.
func brief(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// certificateHosts are the names that a client can ask for; a certificate may have others.
func certificateHosts(names []string) []string {
	hosts := make([]string, 0, len(names))
	for _, n := range names {
		if host, _ := normalizeHost(n); host != "" {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// covers says whether clients that ask for the host will find it, or its wildcard, in the certificate (RFC 6125 section 6.4).
// Unlike x509.Certificate.VerifyHostname it does not look at all of its names.
func (k *keyPair) covers(host string) bool {
	_, parent, _ := strings.Cut(host, ".")
	return contains(k.hosts, host) || contains(k.hosts, "*."+parent)
}

// contains says whether the list, which is ordered, has the name.
func contains(list []string, name string) bool {
	_, found := slices.BinarySearch(list, name)
	return found
}

// certificate is the key pair in a snapshot, so far for no host.
func (k *keyPair) certificate() model.Certificate {
	return model.Certificate{Ref: k.secret, NotAfter: k.pair.Leaf.NotAfter.UTC(), Pair: k.pair}
}

// indexSecrets are the cluster's Secrets by name, if certificates are wanted.
func indexSecrets(c objects.Cluster, o Options) map[objects.Name]*corev1.Secret {
	if !o.TLS {
		return nil
	}
	index := make(map[objects.Name]*corev1.Secret, len(c.Secrets))
	for _, s := range c.Secrets {
		index[nameOf(s)] = s
	}
	return index
}

// keyPair is what the Secret holds, or the reason why it is no certificate, in words as well.
func (t *translator) keyPair(ref model.ObjectRef) (_ *keyPair, r model.Reason, why string) {
	s := t.secrets[objects.Name{Namespace: ref.Namespace, Name: ref.Name}]
	switch {
	case s == nil && t.secretDenied(ref):
		return nil, model.ReasonSecretForbidden,
			fmt.Sprintf("this edge may not read Secret %q of namespace %s: grant it list and watch (deploy/rbac)", ref.Name, ref.Namespace)
	case s == nil:
		return nil, model.ReasonSecretNotFound,
			fmt.Sprintf("no Secret %q of type %s is in namespace %s, or clusters[].secrets is none", ref.Name, corev1.SecretTypeTLS, ref.Namespace)
	}
	k := t.pairs.of(ref, s)
	if k.why != "" {
		return nil, model.ReasonInvalidCertificate, fmt.Sprintf("Secret %q %s", ref.Name, k.why)
	}
	return k, "", ""
}
