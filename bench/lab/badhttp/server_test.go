package badhttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serve starts a server on loopback for the test and returns its address.
func serve(t *testing.T, s *Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := s.Serve(ctx, listener); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); serving.Wait() })
	return listener.Addr().String()
}

func dial(t *testing.T, address, request string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return conn
}

// Ends of an answer.
const (
	open = "open" // nothing more comes, and the connection stays
	fin  = "fin"
	rst  = "rst"
)

const (
	// quiet is how long nothing must come for a connection to count as open.
	quiet = 150 * time.Millisecond
	// patience is how long what is expected may take to come.
	patience = 10 * time.Second
)

// read returns all that comes, and how it ends. It waits for what is expected, and only then for silence.
func read(t *testing.T, conn net.Conn, want, wantEnd string) (answer, end string) {
	t.Helper()
	var got bytes.Buffer
	for {
		limit := patience
		if wantEnd == open && matches(got.String(), want) {
			limit = quiet
		}
		if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
			t.Fatal(err)
		}
		_, err := io.CopyN(&got, conn, 1)
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			return got.String(), fin
		case errors.Is(err, syscall.ECONNRESET):
			return got.String(), rst
		case errors.Is(err, os.ErrDeadlineExceeded):
			return got.String(), open
		}
		t.Fatal(err)
	}
}

const (
	chunkedHead = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	fourChunks  = "2\r\n00\r\n2\r\n00\r\n2\r\n00\r\n2\r\n0\n\r\n"
	okBody      = "\r\n\r\n0000000\n"
	refused     = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 10\r\n\r\ntoo large\n"
	long        = "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n"
	upload      = "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
)

// answers is what a raw client sees of each behaviour; want may leave out the middle, at an ellipsis.
var answers = []struct{ path, request, want, end string }{
	{"/", "", "HTTP/1.1 200 OK\r\n…/close-after ", open},
	{"/count", "?path=/never", "…\r\n\r\n0\n", open},
	{"/ok", "?size=8", "HTTP/1.1 200 OK\r\nX-Hostname: …\r\nContent-Length: 8" + okBody, open},
	{"/chunked", "?size=8", chunkedHead + fourChunks + lastChunk, open},
	{"/trailers", "", "…\r\nTrailer: X-Trailer\r\n\r\n3\r\nok\n\r\n0\r\nX-Trailer: the end\r\n\r\n", open},
	{"/no-length", "?size=8", "HTTP/1.1 200 OK\r\nContent-Type: text/plain" + okBody, fin},
	{"/http10", "?size=8", "HTTP/1.0 200 OK\r\nContent-Type: text/plain" + okBody, fin},
	{"/early-hints", "?size=8", "HTTP/1.1 103 Early Hints\r\n…\r\n\r\nHTTP/1.1 200 OK\r\n…" + okBody, open},
	{"/slow-header", "?delay=1m", "HTTP/1.1 200 OK\r\n", open},
	{"/slow-header", "?delay=1ms", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n", open},
	{"/slow-body", "?delay=1m", chunkedHead, open},
	{"/slow-body", "?delay=1ms&size=8", chunkedHead + fourChunks + lastChunk, open},
	{"/hang", "", "", open},
	{"/hang", "?delay=1ms", "", fin},
	{"/chunked-fin", "?size=8", chunkedHead + fourChunks, fin},
	{"/chunked-rst", "?size=8", chunkedHead + fourChunks, rst},
	{"/chunk-fin", "?size=8", chunkedHead + fourChunks + "a\r\nhalf", fin},
	{"/short-fin", "?size=16", "HTTP/1.1 200 OK\r\nContent-Length: 16" + okBody, fin},
	{"/short-rst", "?size=16", "HTTP/1.1 200 OK\r\nContent-Length: 16" + okBody, rst},
	{"/header-fin", "", "HTTP/1.1 200 OK\r\nContent-Le", fin},
	{"/no-response", "", "", fin},
	{"/no-response-rst", "", "", rst},
	{"/early-close", upload, refused, fin},                           // nothing is unread yet
	{"/early-close", long + strings.Repeat("x", 9999), refused, rst}, // more than the server has read ahead
	{"/early-drain", upload, refused, open},
	{"/early-stall", upload + "body", refused, open},
	{"/early-stall?delay=1ms", upload, refused, fin},
	{"/ignore-continue", upload, "", open},
	{"/ignore-continue?size=8", upload + "body", "HTTP/1.1 200 OK\r\n…" + okBody, open},
	{"/no-content-body", "", "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", open},
	{"/garbage", "", "\x00\x01\x02\x03 this is not HTTP\r\n\r\n", open},
	{"/bad-status", "", "HTTP/1.1 abc OK\r\n…", open},
	{"/bare-lf", "", "HTTP/1.1 200 OK\nContent-Length: 3\n\nok\n", open},
	{"/folded-header", "", "…X-Folded: one\r\n two\r\n…", open},
	{"/space-before-colon", "", "…Content-Length : 3\r\n…", open},
	{"/nul-header", "", "…X-Nul: a\x00b\r\n…", open},
	{"/two-lengths", "", "…Content-Length: 3\r\nContent-Length: 5\r\n\r\nok\n..", open},
	{"/negative-length", "", "…Content-Length: -3\r\n…", open},
	{"/length-and-chunked", "", "…Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n", open},
	{"/bad-chunk-size", "", chunkedHead + "zz\r\n…", open},
	{"/long", "", "…Content-Length: 3\r\n\r\nok\nand more", open},
	{"/switch", "", "HTTP/1.1 101 Switching Protocols\r\n…Upgrade: evil\r\n\r\n", open},
	{"/two-answers", "?size=8", "HTTP/1.1 200 OK\r\n…" + okBody + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", open},
	{"/close-after", "?size=8", "HTTP/1.1 200 OK\r\n…" + okBody, fin},
	{"/reset-after", "?size=8&delay=20ms", "HTTP/1.1 200 OK\r\n…" + okBody, rst},
	{"/nothing-here", "", "HTTP/1.1 404 Not Found\r\n…", open},
}

func matches(got, want string) bool {
	first, rest, cut := strings.Cut(want, "…")
	if !cut {
		return got == want
	}
	if !strings.HasPrefix(got, first) {
		return false
	}
	got = got[len(first):]
	for part := range strings.SplitSeq(rest, "…") {
		i := strings.Index(got, part)
		if i < 0 {
			return false
		}
		got = got[i+len(part):]
	}
	return true
}

func TestBehaviours(t *testing.T) {
	address := serve(t, &Server{})
	for _, tt := range answers {
		t.Run(tt.path+tt.request[:min(len(tt.request), 12)], func(t *testing.T) {
			t.Parallel()
			request := "GET " + tt.path + tt.request + " HTTP/1.1\r\nHost: a\r\n\r\n"
			if strings.HasPrefix(tt.request, "POST") {
				request = strings.Replace(tt.request, "%s", tt.path, 1)
			}
			got, end := read(t, dial(t, address, request), tt.want, tt.end)
			if !matches(got, tt.want) || end != tt.end {
				t.Errorf("got  %.300q, then %s\nwant %.300q, then %s", got, end, tt.want, tt.end)
			}
		})
	}
}

func TestEndlessHeader(t *testing.T) {
	conn := dial(t, serve(t, &Server{}), "GET /endless-header HTTP/1.1\r\nHost: a\r\n\r\n")
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 2<<20)
	if _, err := io.ReadFull(conn, head); err != nil || bytes.Contains(head, []byte("\r\n\r\n")) {
		t.Errorf("the header ends within %d bytes: %v", len(head), err)
	}
}

// Every behaviour is tested above, and in the lab's page.
func TestBehavioursAreKnown(t *testing.T) {
	page, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range behaviours() {
		tested := b.path == "/endless-header"
		for _, a := range answers {
			path, _, _ := strings.Cut(a.path, "?")
			tested = tested || path == b.path
		}
		if !tested {
			t.Errorf("%s is not tested", b.path)
		}
		if !bytes.Contains(page, []byte("`"+b.path+"`")) {
			t.Errorf("%s is not in the lab's README.md", b.path)
		}
	}
}

// A client that goes on after an answer gets the next one; /early-drain takes the body first.
func TestConnectionStays(t *testing.T) {
	s := &Server{}
	address := serve(t, s)
	conn := dial(t, address, "POST /early-drain HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"+
		strings.Repeat("GET /ok?size=8 HTTP/1.1\r\nHost: a\r\n\r\n", 2)+"GET /count?path=/ok HTTP/1.1\r\nHost: a\r\n\r\n")
	want := refused + "…" + okBody + "HTTP/1.1 200 OK\r\n…" + okBody + "…\r\n\r\n2\n"
	if got, end := read(t, conn, want, open); !matches(got, want) || end != open {
		t.Errorf("got %q, then %s", got, end)
	}
	conn = dial(t, address, strings.Replace(upload, "%s", "/ok?size=8", 1))
	want = "HTTP/1.1 100 Continue\r\n\r\n"
	if got, _ := read(t, conn, want, open); got != want {
		t.Errorf("a client that waits for 100 gets %q", got)
	}
}

func TestOnly(t *testing.T) {
	address := serve(t, &Server{Only: "/garbage"})
	want := "\x00\x01\x02\x03 this is not HTTP\r\n\r\n"
	if got, _ := read(t, dial(t, address, "GET /shop HTTP/1.1\r\nHost: a\r\n\r\n"), want, open); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := (&Server{Only: "/nothing-here"}).Serve(t.Context(), listener); err == nil {
		t.Error("an unknown path was taken")
	}
}

func TestPathsAreDistinct(t *testing.T) {
	var paths []string
	for _, b := range behaviours() {
		paths = append(paths, b.path)
	}
	slices.Sort(paths)
	if compact := slices.Compact(slices.Clone(paths)); len(compact) != len(paths) {
		t.Errorf("a path is there twice: %q", paths)
	}
}
