package badhttp

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// A behaviour is what the server does with a request for one path.
type behaviour struct {
	path string
	does string // for the reader of the index
	run  func(*exchange) error
}

// unknown answers paths that have no behaviour.
var unknown = behaviour{does: "status 404", run: func(e *exchange) error {
	return e.whole("404 Not Found", "no such behaviour: see /\n")
}}

// behaviours lists all, the sound ones first.
func behaviours() []behaviour {
	return slices.Concat(sound(), slow(), cutShort(), early(), malformed(), outOfTurn())
}

// find returns the behaviour of a path, nil if there is none.
func find(path string) *behaviour {
	all := behaviours()
	i := slices.IndexFunc(all, func(b behaviour) bool { return b.path == path })
	if i < 0 {
		return nil
	}
	return &all[i]
}

// sound answers are right, if unusual: a proxy hands them on.
func sound() []behaviour {
	return []behaviour{
		{"/", "lists the paths", index},
		{"/count", "says how many requests have come for the path in the query, as in /count?path=/hang", count},
		{"/ok", "Content-Length and size bytes; host name in X-Hostname", ok},
		{"/chunked", "four chunks", func(e *exchange) error { return e.chunked(0, lastChunk) }},
		{"/trailers", "chunks, then the trailer X-Trailer that was announced", trailers},
		{"/no-length", "a body that ends with the connection", func(e *exchange) error { return e.untilClose("HTTP/1.1") }},
		{"/http10", "the same in HTTP/1.0", func(e *exchange) error { return e.untilClose("HTTP/1.0") }},
		{"/early-hints", "103, then the answer", func(e *exchange) error {
			return firstError(e.readBody, e.writes("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"), e.ok)
		}},
	}
}

// defaultDelay is the pause of the slow behaviours.
const defaultDelay = 2 * time.Second

func slow() []behaviour {
	return []behaviour{
		{"/slow-header", "the status line, and the rest after delay", func(e *exchange) error {
			return firstError(e.readBody, e.writes("HTTP/1.1 200 OK\r\n"), e.pauses, e.writes("Content-Length: 3\r\n\r\nok\n"))
		}},
		{"/slow-body", "the header, and the chunks each after delay", func(e *exchange) error { return e.chunked(e.delay(defaultDelay), lastChunk) }},
		{"/hang", "no byte until delay has passed (60s if not given), then closes", func(e *exchange) error {
			return firstError(e.readBody, func() error { return e.pause(e.delay(maxDelay)) }, closes)
		}},
	}
}

// cutShort answers must not become whole ones.
func cutShort() []behaviour {
	return []behaviour{
		{"/chunked-fin", "chunks without the last one, then FIN", func(e *exchange) error { return firstError(func() error { return e.chunked(0, "") }, closes) }},
		{"/chunked-rst", "chunks without the last one, then RST", func(e *exchange) error { return firstError(func() error { return e.chunked(0, "") }, resets) }},
		{"/chunk-fin", "FIN in the middle of a chunk", func(e *exchange) error { return firstError(func() error { return e.chunked(0, "a\r\nhalf") }, closes) }},
		{"/short-fin", "half of Content-Length, then FIN", func(e *exchange) error { return firstError(e.half, closes) }},
		{"/short-rst", "half of Content-Length, then RST", func(e *exchange) error { return firstError(e.half, resets) }},
		{"/header-fin", "half a header, then FIN", func(e *exchange) error {
			return firstError(e.readBody, e.writes("HTTP/1.1 200 OK\r\nContent-Le"), closes)
		}},
		{"/no-response", "FIN instead of an answer", func(e *exchange) error { return firstError(e.readBody, closes) }},
		{"/no-response-rst", "RST instead of an answer", func(e *exchange) error { return firstError(e.readBody, resets) }},
	}
}

// early answers come before the request's body has been read.
func early() []behaviour {
	const refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 10\r\n\r\ntoo large\n"
	return []behaviour{
		{"/early-close", "413 before the body is read, then closes with the body unread, which the kernel makes a RST", func(e *exchange) error {
			return firstError(e.writes(refusal), closes)
		}},
		{"/early-drain", "413 before the body is read, which is then read; the connection stays", func(e *exchange) error {
			return firstError(e.writes(refusal), e.drain)
		}},
		{"/early-stall", "413 before the body is read, which never is; closes after delay", func(e *exchange) error {
			return firstError(e.writes(refusal), func() error { return sleep(e.ctx, e.delay(defaultDelay)) }, closes)
		}},
		{"/ignore-continue", "never sends 100 Continue; answers when the body has come", func(e *exchange) error { return firstError(e.drain, e.answer) }},
	}
}

// malformed answers break the grammar of HTTP.
func malformed() []behaviour {
	all := []behaviour{
		{"/endless-header", "header fields without end (64 MiB)", endlessHeader},
		{"/no-content-body", "204 with a body, which is the next answer's beginning to a client that keeps the connection", func(e *exchange) error {
			return firstError(e.readBody, e.writes("HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))
		}},
	}
	for _, m := range []struct{ path, does, answer string }{
		{"/garbage", "bytes that are no HTTP", "\x00\x01\x02\x03 this is not HTTP\r\n\r\n"},
		{"/bad-status", "a status that is no number", "HTTP/1.1 abc OK\r\nContent-Length: 3\r\n\r\nok\n"},
		{"/bare-lf", "lines that end in LF alone", "HTTP/1.1 200 OK\nContent-Length: 3\n\nok\n"},
		{"/folded-header", "a header field folded over two lines (RFC 9112 section 5.2)", "HTTP/1.1 200 OK\r\nX-Folded: one\r\n two\r\nContent-Length: 3\r\n\r\nok\n"},
		{"/space-before-colon", "a space between a field's name and the colon", "HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nok\n"},
		{"/nul-header", "a NUL in a field's value", "HTTP/1.1 200 OK\r\nX-Nul: a\x00b\r\nContent-Length: 3\r\n\r\nok\n"},
		{"/two-lengths", "two Content-Lengths that differ", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nok\n.."},
		{"/negative-length", "a Content-Length below zero", "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nok\n"},
		{"/length-and-chunked", "Content-Length and Transfer-Encoding (RFC 9112 section 6.3)", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n"},
		{"/bad-chunk-size", "a chunk whose size is no number", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\n\r\n0\r\n\r\n"},
		{"/long", "more bytes than Content-Length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\nand more"},
	} {
		all = append(all, behaviour{m.path, m.does, func(e *exchange) error { return firstError(e.readBody, e.writes(m.answer)) }})
	}
	return all
}

// outOfTurn answers are sound each, but nobody asked for them, or the connection ends when nobody expects it.
func outOfTurn() []behaviour {
	return []behaviour{
		{"/switch", "101 without having been asked to switch", func(e *exchange) error {
			return firstError(e.readBody, e.writes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: evil\r\n\r\n"))
		}},
		{"/two-answers", "the answer, and one more that belongs to no request", func(e *exchange) error {
			return firstError(e.ok, e.writes("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))
		}},
		{"/close-after", "an answer that lets the connection live, which is closed at once, or after delay", func(e *exchange) error {
			return firstError(e.ok, func() error { return e.pause(e.delay(0)) }, closes)
		}},
		{"/reset-after", "the same with RST", func(e *exchange) error {
			return firstError(e.ok, func() error { return e.pause(e.delay(0)) }, resets)
		}},
	}
}

// firstError calls the steps until one fails.
func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func closes() error { return errClose }
func resets() error { return errReset }

func index(e *exchange) error {
	var text strings.Builder
	for _, b := range behaviours() {
		fmt.Fprintf(&text, "%-22s %s\n", b.path, b.does)
	}
	return firstError(e.readBody, func() error { return e.whole("200 OK", text.String()) })
}

func count(e *exchange) error {
	return firstError(e.readBody, func() error { return e.whole("200 OK", fmt.Sprintln(e.server.count(e.query.Get("path")))) })
}

func ok(e *exchange) error { return e.ok() }

func trailers(e *exchange) error {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Trailer\r\n\r\n"
	return firstError(e.readBody, e.writes(head+"3\r\nok\n\r\n0\r\nX-Trailer: the end\r\n\r\n"))
}

func endlessHeader(e *exchange) error {
	if err := firstError(e.readBody, e.writes("HTTP/1.1 200 OK\r\n")); err != nil {
		return err
	}
	field := "X-Endless: " + strings.Repeat("x", 1000) + "\r\n"
	for range maxSize / len(field) {
		if err := e.write(field); err != nil {
			return err
		}
	}
	return errClose
}

// Parts of answers.

// lastChunk ends a chunked body.
const lastChunk = "0\r\n\r\n"

// body returns n bytes that tell where they are.
func body(n int) string {
	var text strings.Builder
	for text.Len() < n {
		fmt.Fprintf(&text, "%07d\n", text.Len())
	}
	return text.String()[:n]
}

// whole writes an answer as it should be.
func (e *exchange) whole(status, body string) error {
	if e.request.Method == "HEAD" {
		return e.write(fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n", status, len(body)))
	}
	return e.write(fmt.Sprintf("HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body))
}

// ok takes the request and answers it well.
func (e *exchange) ok() error { return firstError(e.readBody, e.answer) }

// answer writes what is right.
func (e *exchange) answer() error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	return e.whole("200 OK\r\nX-Hostname: "+host, body(e.size()))
}

// half announces a body and writes half of it.
func (e *exchange) half() error {
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", e.size())
	return firstError(e.readBody, e.writes(head+body(e.size()/2)))
}

// chunked writes four chunks, each after delay, and end.
func (e *exchange) chunked(delay time.Duration, end string) error {
	if err := firstError(e.readBody, e.writes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")); err != nil {
		return err
	}
	text := body(e.size())
	for part := range slices.Chunk([]byte(text), max(1, (len(text)+3)/4)) {
		if err := e.pause(delay); err != nil {
			return err
		}
		if err := e.write(fmt.Sprintf("%x\r\n%s\r\n", len(part), part)); err != nil {
			return err
		}
	}
	return e.write(end)
}

// untilClose writes a body that has no length.
func (e *exchange) untilClose(version string) error {
	return firstError(e.readBody, e.writes(version+" 200 OK\r\nContent-Type: text/plain\r\n\r\n"+body(e.size())), closes)
}

// writes returns write as a step.
func (e *exchange) writes(text string) func() error { return func() error { return e.write(text) } }

// pauses is the pause of the slow behaviours, as a step.
func (e *exchange) pauses() error { return e.pause(e.delay(defaultDelay)) }
