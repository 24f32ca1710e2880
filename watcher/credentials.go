package watcher

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// credentialExpiry returns when the config's credentials end: the token, if it is a JWT (RFC 7519 section 4.1.4), or the
// client certificate. Zero if they do not say, or are a plugin's.
func credentialExpiry(c *rest.Config) time.Time {
	if c == nil {
		return time.Time{}
	}
	if token := content([]byte(c.BearerToken), c.BearerTokenFile); len(token) > 0 {
		return tokenExpiry(string(token))
	}
	return certificateExpiry(content(c.CertData, c.CertFile))
}

// content is what a file holds, or data if there is none: client-go, too, prefers a token's file, which is the newer.
func content(data []byte, file string) []byte {
	if file == "" {
		return data
	}
	read, err := os.ReadFile(file)
	if err != nil {
		return data // a request will fail by it
	}
	return read
}

func tokenExpiry(token string) time.Time {
	parts := strings.Split(strings.TrimSpace(token), ".")
	if len(parts) != 3 {
		return time.Time{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Expiry float64 `json:"exp"` // seconds since 1970, perhaps with a fraction
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Expiry <= 0 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Expiry), 0)
}

func certificateExpiry(chain []byte) time.Time {
	block, _ := pem.Decode(chain)
	if block == nil {
		return time.Time{}
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}
	}
	return leaf.NotAfter
}
