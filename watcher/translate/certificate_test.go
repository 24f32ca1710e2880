package translate

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// tlsScenario is two hosts with a Secret each.
func tlsScenario(t testing.TB) (objects.Cluster, Options) {
	t.Helper()
	s := readScenario(t, "testdata/tls-hosts.txt")
	return s.in[0], s.o
}

func pairs(t testing.TB, c objects.Cluster, o Options) map[string]any {
	t.Helper()
	got := map[string]any{}
	for _, cert := range Translate(objects.Objects{c}, o).Certificates {
		if cert.Pair == nil || cert.Pair.Leaf == nil {
			t.Errorf("%v has no parsed certificate", cert.Ref)
		}
		got[cert.Ref.Name] = cert.Pair
	}
	return got
}

// TestCertificateCache follows two Secrets over translations: what did not change is the same value, which whoever serves it
// can tell by its address, and what is not used any more is forgotten.
func TestCertificateCache(t *testing.T) {
	c, o := tlsScenario(t)
	if a, b := pairs(t, c, o), pairs(t, c, o); a["shop-tls"] == b["shop-tls"] {
		t.Error("without a cache the certificate was remembered")
	}
	o.Certificates = new(CertificateCache)
	first := pairs(t, c, o)
	if len(first) != 2 {
		t.Fatalf("%d certificates, want 2", len(first))
	}
	rewritten := make([]*corev1.Secret, len(c.Secrets)) // as a watch that starts anew gives them
	for i, s := range c.Secrets {
		rewritten[i] = s.DeepCopy()
	}
	c.Secrets = rewritten
	if again := pairs(t, c, o); again["shop-tls"] != first["shop-tls"] || again["wild-tls"] != first["wild-tls"] {
		t.Error("equal Secrets were read again")
	}
	i := slices.IndexFunc(c.Secrets, func(s *corev1.Secret) bool { return s.Name == "shop-tls" })
	j := slices.IndexFunc(c.Secrets, func(s *corev1.Secret) bool { return s.Name == "wild-tls" })
	rotated := slices.Clone(c.Secrets)
	rotated[i] = c.Secrets[i].DeepCopy()
	rotated[i].Data = c.Secrets[j].Data
	c.Secrets = rotated
	if now := pairs(t, c, o); now["shop-tls"] == first["shop-tls"] || now["wild-tls"] != first["wild-tls"] {
		t.Error("the Secret that changed, and no other, was to be read again")
	}
	c.Secrets = nil
	if got := pairs(t, c, o); len(got) != 0 || len(o.Certificates.last.Load().now) != 0 {
		t.Errorf("%d certificates, %d remembered after the Secrets are gone", len(got), len(o.Certificates.last.Load().now))
	}
}

func TestCertificateCacheIsSafeForConcurrentUse(t *testing.T) {
	c, o := tlsScenario(t)
	o.Certificates = new(CertificateCache)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				pairs(t, c, o)
			}
		})
	}
	wg.Wait()
}

// TestKeysStaySecret looks for what private keys are made of in what a snapshot says.
func TestKeysStaySecret(t *testing.T) {
	for _, file := range scenarioFiles(t) {
		s := readScenario(t, file)
		snapshot := Translate(s.in, s.o)
		said := text(t, snapshot) + fmt.Sprint(snapshot.Problems)
		for _, c := range s.in {
			for _, secret := range c.Secrets {
				for line := range strings.Lines(string(secret.Data[corev1.TLSPrivateKeyKey])) {
					if strings.Contains(said, strings.TrimSpace(line)) {
						t.Errorf("%s: a line of the key of %s is told", file, secret.Name)
					}
				}
			}
		}
	}
}

func TestWantedSecrets(t *testing.T) {
	unusable := readScenario(t, "testdata/tls-unusable.txt").in[0]
	hosts, o := tlsScenario(t)
	def := objects.Name{Namespace: "infra", Name: "default"}
	for _, tt := range []struct {
		name string
		in   objects.Cluster
		o    Options
		want string
	}{
		{"no TLS", hosts, Options{DefaultCertificate: def}, "[]"},
		{"nothing but the default", objects.Cluster{}, Options{TLS: true, DefaultCertificate: def}, "[{infra default}]"},
		{"of the Ingresses", hosts, o, "[{shop shop-tls} {shop wild-tls}]"},
		{"and the default", hosts, Options{TLS: true, DefaultCertificate: def}, "[{infra default} {shop shop-tls} {shop wild-tls}]"},
		{"whether they exist or not, once each", unusable, Options{TLS: true},
			"[{shop forbidden} {shop garbage} {shop missing} {shop mixed} {shop no-crt} {shop no-key} {shop opaque} {shop other-ns} {shop other-tls}]"},
		{"of no Ingress of another class", objects.Cluster{Ingresses: hosts.Ingresses}, o, "[]"},
		{"without secretName", readScenario(t, "testdata/tls-no-secret.txt").in[0], o, "[]"},
	} {
		if got := fmt.Sprint(WantedSecrets(tt.in, tt.o)); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// TestCovers holds covers to what clients in Go do, for names and wildcards that are near to each other.
func TestCovers(t *testing.T) {
	names := []string{"example.com", "*.example.com", "a.example.com", "*.a.example.com", "b.a.example.com", "com", "*.com", "*.b.a.example.com", "localhost"}
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		var in []string
		for _, n := range names {
			if r.IntN(3) == 0 {
				in = append(in, n)
			}
		}
		k := &keyPair{pair: &tls.Certificate{Leaf: &x509.Certificate{DNSNames: in}}, hosts: certificateHosts(in)}
		for _, host := range names {
			if got, want := k.covers(host), k.pair.Leaf.VerifyHostname(host) == nil; got != want {
				t.Errorf("a certificate for %v: covers(%s) is %v, want %v", in, host, got, want)
			}
		}
	}
}

func TestCertificatesThatAreTooCostly(t *testing.T) {
	rsaOf := func(bits uint) *tls.Certificate {
		return &tls.Certificate{Leaf: &x509.Certificate{PublicKey: &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1)}}}
	}
	chainOf := func(bytes int) *tls.Certificate {
		return &tls.Certificate{Leaf: &x509.Certificate{}, Certificate: [][]byte{make([]byte, bytes/2), make([]byte, bytes-bytes/2)}}
	}
	for _, tt := range []struct {
		name string
		pair *tls.Certificate
		want string
	}{
		{"long RSA key", rsaOf(maxRSABits), ""},
		{"longer", rsaOf(maxRSABits + 1), "has an RSA key of 4097 bits"},
		{"long chain", chainOf(maxChain), ""},
		{"longer", chainOf(maxChain + 1), "has certificates of 102401 bytes in tls.crt"},
	} {
		if got := tooCostly(tt.pair); !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	names := make([]string, 10000)
	for i := range names {
		names[i] = fmt.Sprintf("host-%d.example.com", i)
	}
	k := parseKeyPair(model.ObjectRef{}, tlsSecret(t, metav1.ObjectMeta{}, names...))
	if k.pair != nil || k.why == "" || len(k.hosts) > 0 {
		t.Errorf("a certificate for %d names is used", len(k.hosts))
	}
}

// TestWantedSecretsAreEnough translates the scenarios with those Secrets alone, as a cluster gives them.
func TestWantedSecretsAreEnough(t *testing.T) {
	left := 0
	for _, file := range scenarioFiles(t) {
		s := readScenario(t, file)
		want := text(t, Translate(s.in, s.o))
		for i := range s.in {
			wanted, all := WantedSecrets(s.in[i], s.o), len(s.in[i].Secrets)
			s.in[i].Secrets = slices.DeleteFunc(s.in[i].Secrets, func(s *corev1.Secret) bool { return !slices.Contains(wanted, nameOf(s)) })
			left += all - len(s.in[i].Secrets)
		}
		if got := text(t, Translate(s.in, s.o)); got != want {
			t.Errorf("%s: with the Secrets that are wanted\n%s\nwith all\n%s", file, got, want)
		}
	}
	if left == 0 {
		t.Error("every Secret of every scenario is wanted: the test shows nothing")
	}
}

// checkCertificates holds a snapshot to what model says about Certificates.
func checkCertificates(t *testing.T, s *model.Snapshot) {
	t.Helper()
	seen := map[string]bool{}
	defaults := 0
	for i, c := range s.Certificates {
		if c.Pair == nil || c.Pair.Leaf == nil || !slices.IsSorted(c.Hosts) || i > 0 && s.Certificates[i-1].Ref.Compare(c.Ref) >= 0 {
			t.Errorf("certificate %v of %v", c.Ref, c.Hosts)
		}
		for _, h := range c.Hosts {
			if seen[h] {
				t.Errorf("host %s has two certificates", h)
			}
			seen[h] = true
		}
		if c.Default {
			defaults++
		} else if len(c.Hosts) == 0 {
			t.Errorf("%v is presented to nobody", c.Ref)
		}
	}
	if defaults > 1 {
		t.Errorf("%d default certificates", defaults)
	}
}
