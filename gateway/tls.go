package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"syscall"

	"github.com/valyala/fasthttp"
)

// newTLSConfig returns what TLS is spoken by: HTTP/1 and nothing else (ALPN, RFC 7301), suites, curves and session tickets
// as Go has them. Tickets do not depend on certificates, so sessions are resumed after these have changed.
func (g *Gateway) newTLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: g.opt.TLSMinVersion,
		NextProtos: []string{"http/1.1", "http/1.0"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return g.certificate(hello.ServerName), nil
		},
	}
}

// certificate returns the certificate to present to a client that asked for the host, which may be empty.
func (g *Gateway) certificate(host string) *tls.Certificate {
	st := g.state.Load()
	if pair := st.certificates.find(host); pair != nil {
		return pair
	}
	return g.fallback
}

// handshake reports whether TLS was agreed on. The watcher bounds its time.
func (g *Gateway) handshake(c *conn) bool {
	err := c.tls.HandshakeContext(context.Background())
	slow := c.detach() == verdictSlowClient
	g.metrics.handshakes.WithLabelValues(handshakeResult(c.tls, err, slow)).Inc()
	if err != nil {
		g.log.Debug("tls handshake failed", "peer", c.peer.String(), "err", err)
		c.explainTLS(err)
		return false
	}
	c.enter(phaseHead, nil)
	return true
}

// The results of handshakes, as labels of their metric.
const (
	handshakeFull     = "full"
	handshakeResumed  = "resumed"
	handshakeTimeout  = "timeout"
	handshakeNotTLS   = "not_tls"
	handshakeGone     = "client_gone"
	handshakeDistrust = "refused_by_client" // by an alert: mostly because it does not trust the certificate
	handshakeRefused  = "refused"           // no version, cipher suite or protocol in common, or a broken message
)

// handshakeResult is the label of the handshake metric.
func handshakeResult(c *tls.Conn, err error, slow bool) string {
	var record tls.RecordHeaderError
	var op *net.OpError
	switch {
	case err == nil && c.ConnectionState().DidResume:
		return handshakeResumed
	case err == nil:
		return handshakeFull
	case slow, errors.Is(err, net.ErrClosed): // the latter by the end of the gateway
		return handshakeTimeout
	case errors.As(err, &record):
		return handshakeNotTLS
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return handshakeGone
	case errors.As(err, &op) && op.Op == "remote error":
		return handshakeDistrust
	}
	return handshakeRefused
}

// explainTLS answers a client that speaks HTTP in clear where TLS is spoken.
func (c *conn) explainTLS(err error) {
	var record tls.RecordHeaderError
	if !errors.As(err, &record) || record.Conn == nil || !looksLikeHTTP(record.RecordHeader) {
		return
	}
	body := answerClear.body()
	if _, err := io.WriteString(record.Conn, "HTTP/1.1 400 Bad Request\r\nServer: "+serverName+"\r\nContent-Type: "+plainText+
		"\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\nConnection: close\r\n\r\n"+body); err != nil {
		return
	}
	c.g.metrics.countError(answerClear)
	c.g.metrics.countCode(answerClear.code)
	c.linger = true
}

// looksLikeHTTP tells a method from the five bytes that a TLS record begins with, the first of which is below 0x20.
func looksLikeHTTP(head [5]byte) bool {
	for _, method := range []string{fasthttp.MethodGet, fasthttp.MethodHead, fasthttp.MethodPost, fasthttp.MethodPut,
		fasthttp.MethodPatch, fasthttp.MethodDelete, fasthttp.MethodOptions} {
		n := min(len(head), len(method))
		if string(head[:n]) == method[:n] {
			return true
		}
	}
	return false
}
