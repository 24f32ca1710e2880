package translate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	randv2 "math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// tlsSecret makes a Secret with a certificate of its own for the hosts.
func tlsSecret(t testing.TB, meta metav1.ObjectMeta, hosts ...string) *corev1.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: hosts, NotAfter: time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)}
	crt, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &corev1.Secret{ObjectMeta: meta, Type: corev1.SecretTypeTLS, Data: map[string][]byte{
		corev1.TLSCertKey:       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: crt}),
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}}
}

// TestOldestCertificateIsPresented gives random Ingresses random Secrets, of which some are broken or missing, and holds the
// certificate of each host against the plain rule: the one that the oldest Ingress with a usable one names first.
func TestOldestCertificateIsPresented(t *testing.T) {
	r := randv2.New(randv2.NewPCG(3, 4))
	classes := largeCluster(0)[0].IngressClasses
	secrets := []*corev1.Secret{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "broken"}, Type: corev1.SecretTypeTLS}}
	usable := map[string]bool{}
	for i := range 4 {
		secrets = append(secrets, tlsSecret(t, metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("s", i)}, "*.example.com"))
		usable[fmt.Sprint("s", i)] = true
	}
	names := []string{"s0", "s1", "s2", "s3", "broken", "missing", ""}
	for range 200 {
		c := objects.Cluster{IngressClasses: classes, Secrets: secrets}
		want, age := map[string]string{}, map[string]int{}
		for i, created := range r.Perm(6) {
			ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("i", i), CreationTimestamp: metav1.Unix(int64(created), 0)},
				Spec: networkingv1.IngressSpec{IngressClassName: new("sallyport")}}
			for range r.IntN(3) {
				entry := networkingv1.IngressTLS{SecretName: names[r.IntN(len(names))], Hosts: []string{fmt.Sprintf("h%d.example.com", r.IntN(4))}}
				ing.Spec.TLS = append(ing.Spec.TLS, entry)
				host := entry.Hosts[0]
				if old, taken := age[host]; usable[entry.SecretName] && (!taken || created < old) {
					want[host], age[host] = entry.SecretName, created
				}
			}
			c.Ingresses = append(c.Ingresses, ing)
		}
		s := Translate(objects.Objects{c}, Options{TLS: true})
		checkCertificates(t, s)
		got := map[string]string{}
		for _, cert := range s.Certificates {
			for _, h := range cert.Hosts {
				got[h] = cert.Ref.Name
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("certificates\ngot  %v\nwant %v\n%s", got, want, text(t, s))
		}
	}
}

// TestOthersGiveNoCertificate: who has the default certificate, or a Secret that is not usable at present, is not given that
// of another namespace instead, which is to claim the host, or its wildcard, with a certificate that nobody trusts.
func TestOthersGiveNoCertificate(t *testing.T) {
	c := objects.Cluster{IngressClasses: largeCluster(0)[0].IngressClasses, Secrets: []*corev1.Secret{
		tlsSecret(t, metav1.ObjectMeta{Namespace: "infra", Name: "default"}, "*.example.com"),
		tlsSecret(t, metav1.ObjectMeta{Namespace: "hostile", Name: "tls"}, "*.example.com", "*.example.org"),
		tlsSecret(t, metav1.ObjectMeta{Namespace: "shop", Name: "tls"}, "own.example.com"),
	}}
	for i, tt := range []struct{ namespace, host, secret string }{ // the older ones first
		{"shop", "default.example.com", ""},
		{"shop", "missing.example.com", "missing"},
		{"shop", "own.example.com", "missing"},
		{"shop", "own.example.com", "tls"},
		{"shop", "other.example.org", ""}, // which the default certificate is not for
		{"hostile", "default.example.com", "tls"},
		{"hostile", "missing.example.com", "tls"},
		{"hostile", "own.example.com", "tls"},
		{"hostile", "*.example.com", "tls"},
		{"hostile", "*.example.org", "tls"},
	} {
		c.Ingresses = append(c.Ingresses, &networkingv1.Ingress{
			ObjectMeta: metav1.ObjectMeta{Namespace: tt.namespace, Name: fmt.Sprint("i", i), CreationTimestamp: metav1.Unix(int64(i), 0)},
			Spec: networkingv1.IngressSpec{IngressClassName: new("sallyport"),
				TLS: []networkingv1.IngressTLS{{SecretName: tt.secret, Hosts: []string{tt.host}}}}})
	}
	s := Translate(objects.Objects{c}, Options{TLS: true, DefaultCertificate: objects.Name{Namespace: "infra", Name: "default"}})
	checkCertificates(t, s)
	got := map[string][]string{}
	for _, cert := range s.Certificates {
		got[cert.Ref.Namespace] = cert.Hosts
	}
	want := map[string][]string{"infra": {"default.example.com", "missing.example.com"}, "shop": {"own.example.com"}, "hostile": {"*.example.com", "*.example.org"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("hosts by namespace of the certificate\ngot  %v\nwant %v", got, want)
	}
	const told = "problem Ingress hostile/i5: spec.tls[0].hosts[0]: default.example.com presents the default certificate, as Ingress shop/i0 comes first " +
		"by age and name and has no other: only its namespace can name a Secret for it (DuplicateHost)"
	if got := text(t, s); !strings.Contains(got, told) || strings.Count(got, "(DuplicateHost)") != 3 {
		t.Errorf("want 3 DuplicateHost, one of them\n%s\ngot\n%s", told, got)
	}
}

// withTLS gives each Ingress of the cluster a Secret of its own.
func withTLS(t testing.TB, in objects.Objects) objects.Objects {
	t.Helper()
	for _, ing := range in[0].Ingresses {
		host := ing.Spec.Rules[0].Host
		ing.Spec.TLS = []networkingv1.IngressTLS{{SecretName: ing.Name, Hosts: []string{host}}}
		in[0].Secrets = append(in[0].Secrets, tlsSecret(t, metav1.ObjectMeta{Namespace: ing.Namespace, Name: ing.Name}, host))
	}
	return in
}

// BenchmarkTranslateTLS is a reconcile with a Secret for each of 5,000 Ingresses, all of them as they were before.
func BenchmarkTranslateTLS(b *testing.B) {
	const services = 10000
	in := withTLS(b, largeCluster(services))
	o := Options{Reach: model.ReachPods, TLS: true, RedirectHTTPS: true, Certificates: new(CertificateCache)}
	Translate(in, o)
	b.ReportAllocs()
	before := cpuTime(b)
	for b.Loop() {
		if s := Translate(in, o); len(s.Services) != services || len(s.Certificates) != services/2 || len(s.Problems) > 0 {
			b.Fatalf("%d services, %d certificates, %v", len(s.Services), len(s.Certificates), s.Problems)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}
