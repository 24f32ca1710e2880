package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTailStart(t *testing.T) {
	long := strings.Repeat("0123456789\n", 1000)
	for _, tt := range []struct {
		name, text string
		n          int64
		want       string
	}{
		{"all", "a\nb\n", -1, "a\nb\n"},
		{"none", "a\nb\n", 0, ""},
		{"last", "a\nb\n", 1, "b\n"},
		{"last without end", "a\nb", 1, "b"},
		{"exactly all", "a\nb\n", 2, "a\nb\n"},
		{"more than there are", "a\nb\n", 3, "a\nb\n"},
		{"empty lines count", "a\n\n\n", 2, "\n\n"},
		{"nothing there", "", 1, ""},
		{"over several blocks", "x\n" + long, 1000, long},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at, err := tailStart(io.NewSectionReader(strings.NewReader(tt.text), 0, int64(len(tt.text))), tt.n)
			if err != nil || tt.text[at:] != tt.want {
				t.Errorf("got %.40q, %v, want %.40q", tt.text[at:], err, tt.want)
			}
		})
	}
}

// twoRuns makes a log of a run that has ended and one that has not.
func twoRuns(t *testing.T) *containerLog {
	t.Helper()
	l := &containerLog{path: filepath.Join(t.TempDir(), "main.log")}
	for _, text := range []string{"first\n", "second\nthird\n"} {
		file, err := l.begin()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := io.WriteString(file, text); err != nil {
			t.Fatal(err)
		}
		if text == "first\n" {
			if err := l.end(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l
}

func TestLogOfARun(t *testing.T) {
	l := twoRuns(t)
	last, previous := l.runs()
	for _, tt := range []struct {
		name    string
		run     *logRun
		options logOptions
		want    string
	}{
		{"running", last, logOptions{tailLines: -1, limitBytes: -1}, "second\nthird\n"},
		{"tail", last, logOptions{tailLines: 1, limitBytes: -1}, "third\n"},
		{"tail does not reach into the run before", last, logOptions{tailLines: 9, limitBytes: -1}, "second\nthird\n"},
		{"limit", last, logOptions{tailLines: -1, limitBytes: 8}, "second\nt"},
		{"limit while following", last, logOptions{follow: true, tailLines: -1, limitBytes: 8}, "second\nt"},
		{"previous", previous, logOptions{tailLines: -1, limitBytes: -1}, "first\n"},
		{"following what has ended", previous, logOptions{follow: true, tailLines: -1, limitBytes: -1}, "first\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			if err := tt.run.write(t.Context(), &out, l.path, tt.options); err != nil || out.String() != tt.want {
				t.Errorf("got %q, %v, want %q", out.String(), err, tt.want)
			}
		})
	}
}

// TestFollow holds that following ends with the run, and without what the next run writes.
func TestFollow(t *testing.T) {
	l := twoRuns(t)
	last, _ := l.runs()
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(last.write(t.Context(), w, l.path, logOptions{follow: true, tailLines: -1, limitBytes: -1}))
	}()
	write := func(text string) {
		t.Helper()
		file, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := io.WriteString(file, text); err != nil {
			t.Fatal(err)
		}
	}
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	read("second\nthird\n")
	write("fourth\n")
	read("fourth\n")
	if err := l.end(); err != nil {
		t.Fatal(err)
	}
	next, err := l.begin()
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
	write("fifth\n")
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		t.Errorf("after the end of the run: got %q, %v", rest, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	last, _ = l.runs()
	if err := last.write(ctx, io.Discard, l.path, logOptions{follow: true, tailLines: -1, limitBytes: -1}); err != nil {
		t.Errorf("a follower that has gone: %v", err)
	}
}

func TestParseLogOptions(t *testing.T) {
	for _, tt := range []struct{ query, want string }{
		{"", "{false false -1 -1} <nil>"},
		{"follow=true&previous=1&tailLines=3&limitBytes=10&timestamps=false&stream=All", "{true true 3 10} <nil>"},
		{"tailLines=-1", `{false false 0 -1} tailLines: "-1" is not a number of 0 or more`},
		{"follow=perhaps", `{false false -1 -1} follow: "perhaps" is neither true nor false`},
		{"sinceSeconds=5", "{false false 0 0} sinceSeconds is not supported by the lab's node agent: it does not record when a line was written"},
		{"timestamps=true", "{false false 0 0} timestamps is not supported by the lab's node agent: it does not record when a line was written"},
		{"stream=Stderr", `{false false 0 0} stream "Stderr" is not supported by the lab's node agent: only All is`},
	} {
		query, err := url.ParseQuery(tt.query)
		if err != nil {
			t.Fatal(err)
		}
		options, err := parseLogOptions(query)
		if got := fmt.Sprint(options, err); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.query, got, tt.want)
		}
	}
}

func TestAdministratorsOnly(t *testing.T) {
	handler := administratorsOnly(http.NotFoundHandler())
	for _, tt := range []struct {
		groups []string
		want   int
	}{
		{[]string{"dev", "system:masters"}, http.StatusNotFound},
		{[]string{"dev"}, http.StatusForbidden},
		{nil, http.StatusForbidden},
	} {
		r := httptest.NewRequest("GET", "/containerLogs/a/b/c", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "x", Organization: tt.groups}}}}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("groups %q: status %d, want %d", tt.groups, w.Code, tt.want)
		}
	}
}
