package gateway

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strings"
	"time"

	"sallyport/watcher/model"
)

// certificates finds the certificate to present. It is immutable.
type certificates struct {
	exact    map[string]*tls.Certificate // by host
	wildcard map[string]*tls.Certificate // by what follows the first label, with its dot: ".example.com"
	other    *tls.Certificate            // for any other host; nil if no certificate is the default one
}

// newCertificates makes the table of a snapshot's certificates.
func newCertificates(all []model.Certificate) certificates {
	t := certificates{exact: make(map[string]*tls.Certificate), wildcard: make(map[string]*tls.Certificate)}
	for i := range all {
		c := &all[i]
		if c.Pair == nil {
			continue
		}
		for _, host := range c.Hosts {
			if suffix, ok := strings.CutPrefix(host, "*"); ok {
				t.wildcard[suffix] = c.Pair
			} else {
				t.exact[host] = c.Pair
			}
		}
		if c.Default {
			t.other = c.Pair
		}
	}
	return t
}

// maxServerName is the length of the longest DNS name (RFC 1035 2.3.4).
const maxServerName = 253

// find returns the certificate for the name that a client asked for (RFC 6066 section 3, which has no port and no IP
// address), or nil: the host's own, else its wildcard's, else the default one. It does not allocate.
func (t *certificates) find(name string) *tls.Certificate {
	name = strings.TrimSuffix(name, ".")
	if len(name) > maxServerName {
		return t.other
	}
	var storage [maxServerName]byte
	host := storage[:0]
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		host = append(host, c)
	}
	if pair := t.exact[string(host)]; pair != nil {
		return pair
	}
	if dot := bytes.IndexByte(host, '.'); dot > 0 {
		if pair := t.wildcard[string(host[dot:])]; pair != nil {
			return pair
		}
	}
	return t.other
}

// selfSigned returns a certificate that no client trusts, for hosts that have none: the handshake succeeds, and the
// person in front of the client can see what is missing.
func selfSigned(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of the fallback certificate: %w", err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: "Sallyport fallback certificate"},
		NotBefore:    now.Add(-24 * time.Hour), // clocks differ
		NotAfter:     now.AddDate(10, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	raw, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign the fallback certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("read the fallback certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key, Leaf: leaf}, nil
}

// showExpiry sets the metric of the certificates' ends, and takes out those that are gone.
func (g *Gateway) showExpiry(all []model.Certificate) {
	shown := make(map[string]bool, len(all))
	for _, c := range all {
		secret := strings.TrimPrefix(c.Ref.String(), c.Ref.Kind+" ")
		shown[secret] = true
		g.metrics.certificateEnd.WithLabelValues(secret).Set(float64(c.NotAfter.Unix()))
	}
	for secret := range g.secrets {
		if !shown[secret] {
			g.metrics.certificateEnd.DeleteLabelValues(secret)
		}
	}
	g.secrets = shown
}
