package translate

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

// FuzzIsPlainName holds the quick answer against the full one.
func FuzzIsPlainName(f *testing.F) {
	for _, s := range []string{"shop.example.com", "a", "a-b.c", "a--b", "-a", "a-", "a.-b", "a-.b", "a..b", ".a", "a.", "192.0.2.1", "a.1", "1.a", "A", "a_b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		_, err := netip.ParseAddr(host)
		if isPlainName(host) && (err == nil || len(validation.IsDNS1123Subdomain(host)) > 0) {
			t.Errorf("%q is taken for a plain name", host)
		}
	})
}

func TestIsPlainName(t *testing.T) {
	for host, want := range map[string]bool{
		"shop.example.com": true, "a": true, "0a.b-c.d": true, "xn--bcher-kva.example": true,
		"192.0.2.1": false, "a.1": false, "*.example.com": false, "a-.b": false, "a.-b": false, "a.b-": false, "a..b": false, "a.": false, "": false,
	} {
		if got := isPlainName(host); got != want {
			t.Errorf("isPlainName(%q) = %v", host, got)
		}
	}
}

// FuzzIsPlainPath holds the quick answer against the full one.
func FuzzIsPlainPath(f *testing.F) {
	for _, s := range []string{"/", "/a/b", "/a/b/", "/a.b/c", "//", "/a//b", "/.", "/a/..", "/a/.b", "/%41", "/a b", "/~a-_", "/a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if len(path) == 0 || path[0] != '/' || !isPlainPath(path) {
			return
		}
		if got, why := encodePath(path); got != path || why != "" {
			t.Errorf("%q is taken for plain, and is %q, %q", path, got, why)
		}
	})
}
