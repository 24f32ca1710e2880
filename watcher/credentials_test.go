package watcher

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// token makes a JWT with that payload.
func token(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2ln"
}

// clientCertificate makes a certificate that ends at that time.
func clientCertificate(t *testing.T, end time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestCredentialExpiry(t *testing.T) {
	end := time.Unix(1800000000, 0)
	certificate := clientCertificate(t, end)
	file := filepath.Join(t.TempDir(), "credentials")
	write(t, file, token(`{"exp": 1800000000}`)+"\n")
	certificateFile := file + ".crt"
	write(t, certificateFile, string(certificate))
	for _, tt := range []struct {
		name   string
		config *rest.Config
		want   time.Time
	}{
		{"a ServiceAccount's token", &rest.Config{BearerToken: token(`{"iss": "kubernetes", "exp": 1800000000}`)}, end},
		{"a token's file, which is newer than the token", &rest.Config{BearerToken: token(`{"exp": 1}`), BearerTokenFile: file}, end},
		{"the file is missing", &rest.Config{BearerToken: token(`{"exp": 1800000000}`), BearerTokenFile: file + "x"}, end},
		{"a client certificate", &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertData: certificate}}, end},
		{"a client certificate's file", &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertFile: certificateFile}}, end},
		{"a token without end", &rest.Config{BearerToken: token(`{}`)}, time.Time{}},
		{"a token that is no JWT", &rest.Config{BearerToken: "secret"}, time.Time{}},
		{"three parts, and no JWT", &rest.Config{BearerToken: "a.&.c"}, time.Time{}},
		{"a payload that is no JSON", &rest.Config{BearerToken: "a.YQ.c"}, time.Time{}},
		{"no certificate", &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertData: []byte("x")}}, time.Time{}},
		{"a certificate that is none", &rest.Config{TLSClientConfig: rest.TLSClientConfig{CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"})}}, time.Time{}},
		{"nothing", &rest.Config{}, time.Time{}},
		{"no config", nil, time.Time{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := credentialExpiry(tt.config); !got.Equal(tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
