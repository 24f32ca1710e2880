package route

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestAppendPath(t *testing.T) {
	for _, tt := range []struct{ raw, want string }{ // want "" is a refusal
		{"/", "/"},
		{"/a/b", "/a/b"},
		{"/a/b/", "/a/b/"},
		{"//a//b", "//a//b"},
		{"/%61%7e%2D", "/a~-"},
		{"/%2f%2F%3b%25", "/%2F%2F%3B%25"},
		{"/%2561", "/%2561"}, // decoded once, never twice
		{"/./a/./b/.", "/a/b/"},
		{"/a/b/../c", "/a/c"},
		{"/a/b/..", "/a/"},
		{"/../../a", "/a"},
		{"/..", "/"},
		{"/a/%2e%2E/b", "/b"},
		{"/a/.%2e/%2e/b", "/b"},
		{"/a//../b", "/a/b"},
		{"/a/..%2fb", "/a/..%2Fb"},
		{"/.well-known/x", "/.well-known/x"},
		{"/...", "/..."},
		{"/a b", "/a%20b"},
		{"/\xc3\xbc", "/%C3%BC"},
		{`/"<>` + "`{}", "/%22%3C%3E%60%7B%7D"},
		{"/[a]|^", "/[a]|^"},
		{"/%0a", "/%0A"},
		{"", ""},
		{"a", ""},
		{"/%", ""},
		{"/%1", ""},
		{"/%zz", ""},
		{"/%00", ""},
		{"/\x00", ""},
		{"/\t", ""},
		{"/\x7f", ""},
		{`/a\b`, ""},
		{"/a#b", ""},
		{"/a?b", ""},
	} {
		got, err := AppendPath([]byte("x"), []byte(tt.raw))
		if tt.want == "" {
			if !errors.Is(err, ErrPath) || string(got) != "x" {
				t.Errorf("AppendPath(%q) = %q, %v, want refusal", tt.raw, got, err)
			}
			continue
		}
		if err != nil || string(got) != "x"+tt.want {
			t.Errorf("AppendPath(%q) = %q, %v, want %q", tt.raw, got, err, "x"+tt.want)
		}
	}
}

func TestAppendHost(t *testing.T) {
	long := strings.Repeat("a", 254)
	for _, tt := range []struct{ raw, authority, host string }{ // both empty is a refusal
		{"Shop.Example.COM", "shop.example.com", "shop.example.com"},
		{"shop.example.com.", "shop.example.com", "shop.example.com"},
		{"shop.example.com:8080", "shop.example.com:8080", "shop.example.com"},
		{"shop.example.com.:8080", "shop.example.com:8080", "shop.example.com"},
		{"shop.example.com:", "shop.example.com", "shop.example.com"},
		{"a_b-c.x", "a_b-c.x", "a_b-c.x"},
		{"10.0.0.1:80", "10.0.0.1:80", "10.0.0.1"},
		{"[2001:DB8::1]:80", "[2001:db8::1]:80", "[2001:db8::1]"},
		{"[::1]", "[::1]", "[::1]"},
		{"", "", ""},
		{".", "", ""},
		{"a..b", "", ""},
		{".a", "", ""},
		{"a..", "", ""},
		{"u:p@x", "", ""},
		{"u@x", "", ""},
		{"a b", "", ""},
		{"a/b", "", ""},
		{"a,b", "", ""},
		{"\xc3\xbc.de", "", ""},
		{"x:65536", "", ""},
		{"x:99999999999999999999", "", ""},
		{"x:80:80", "", ""},
		{"x:-1", "", ""},
		{"::1", "", ""},
		{"[::1", "", ""},
		{"[::1]x", "", ""},
		{"[]", "", ""},
		{"[a.b]", "", ""},
		{long + ".com", "", ""},
	} {
		authority, host, err := AppendHost([]byte("y"), []byte(tt.raw))
		if tt.authority == "" {
			if !errors.Is(err, ErrHost) {
				t.Errorf("AppendHost(%q) = %q, %q, %v, want refusal", tt.raw, authority, host, err)
			}
			continue
		}
		if err != nil || string(authority) != "y"+tt.authority || string(host) != tt.host {
			t.Errorf("AppendHost(%q) = %q, %q, %v, want %q, %q", tt.raw, authority, host, err, "y"+tt.authority, tt.host)
		}
	}
}

func TestNormalizeDoesNotAllocate(t *testing.T) {
	raw, dirty, name := []byte("/api/v1/items/42"), []byte("/a/%2e./b%2f"), []byte("Shop.Example.com:80")
	buf := make([]byte, 0, 256)
	n := testing.AllocsPerRun(100, func() {
		for _, p := range [][]byte{raw, dirty} {
			if _, err := AppendPath(buf, p); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := AppendHost(buf, name); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("normalising allocates %v times, want 0", n)
	}
}

// What is matched is what is forwarded, so a second hop that normalises again must see the same path.
func FuzzAppendPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/x", "/%252e", "//..//", "/a/./", "/\xff", "/..%2f", "/.//..", "/%5c.."} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		once, err := AppendPath(nil, raw)
		if err != nil {
			return
		}
		twice, err := AppendPath(nil, once)
		if err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%q becomes %q and then %q, %v", raw, once, twice, err)
		}
		if len(once) == 0 || once[0] != '/' {
			t.Errorf("%q becomes %q, which does not begin with a slash", raw, once)
		}
		for element := range bytes.SplitSeq(once, []byte{'/'}) {
			if string(element) == "." || string(element) == ".." {
				t.Errorf("%q becomes %q, which has a dot segment", raw, once)
			}
		}
		for _, c := range once {
			if c <= ' ' || c >= 0x7f || c == '\\' || c == '?' || c == '#' {
				t.Errorf("%q becomes %q, which has byte %#02x", raw, once, c)
			}
		}
	})
}

func FuzzAppendHost(f *testing.F) {
	for _, s := range []string{"a.b:80", "[::1]:80", "A.", "a..", "u@h", "[", "[]:1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		once, host, err := AppendHost(nil, raw)
		if err != nil {
			return
		}
		twice, again, err := AppendHost(nil, once)
		if err != nil || !bytes.Equal(once, twice) || !bytes.Equal(host, again) {
			t.Errorf("%q becomes %q (%q) and then %q (%q), %v", raw, once, host, twice, again, err)
		}
		if bytes.ContainsAny(once, " \t\r\n/?#@,\\") {
			t.Errorf("%q becomes %q", raw, once)
		}
	})
}
