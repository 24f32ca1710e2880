package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"
)

// An authority issues certificates for tests.
type authority struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	issued int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lab authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// pool trusts the authority and nobody else.
func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// secret is the manifest of a TLS Secret for the hosts, with a new certificate each time. Its serial number counts.
func (a *authority) secret(t *testing.T, name string, hosts ...string) (manifest string, serial int64) {
	t.Helper()
	a.issued++
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1000 + a.issued), Subject: pkix.Name{CommonName: name}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\ntype: kubernetes.io/tls\ndata:\n  tls.crt: %s\n  tls.key: %s\n---\n",
		name, inSecret("CERTIFICATE", cert), inSecret("PRIVATE KEY", der)), template.SerialNumber.Int64()
}

func inSecret(kind string, der []byte) string {
	var b bytes.Buffer
	_ = pem.Encode(&b, &pem.Block{Type: kind, Bytes: der}) // a Buffer does not fail
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// permitSecrets lets the edges read the namespace's Secrets of these names, by the example that an operator would edit.
func (s *site) permitSecrets(t *testing.T, ns string, names ...string) {
	t.Helper()
	role, err := os.ReadFile("../../../deploy/rbac/secrets-named.yaml")
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(t, "", strings.NewReplacer("namespace: shop", "namespace: "+ns, "[shop-tls]", "["+strings.Join(names, ", ")+"]").Replace(string(role)))
}
