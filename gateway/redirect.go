package gateway

import (
	"bytes"
	"strconv"

	"github.com/valyala/fasthttp"

	"sallyport/gateway/route"
)

// acmeChallenges are always answered in clear: who asks there (RFC 8555 8.3) may be about to issue the certificate that
// a redirect would need.
var acmeChallenges = []byte("/.well-known/acme-challenge/")

// redirects reports whether the request has to be made again over HTTPS. It does not if it came so to a trusted proxy.
func (x *exchange) redirects(r *route.Route) bool {
	if !r.RedirectHTTPS || x.c.tls != nil || x.c.trusted && bytes.EqualFold(x.req.proto, []byte("https")) {
		return false
	}
	return !bytes.HasPrefix(x.req.path, acmeChallenges)
}

// location is where the request is redirected to: the same target, as the client spelt it.
func (x *exchange) location() []byte {
	host := x.req.host
	if len(host) == 0 {
		host = []byte(x.c.localText[:len(x.c.localText)-len(x.c.localPort)-1])
	}
	l := append([]byte("https://"), host...)
	if port := x.g.opt.RedirectPort; port != 0 && port != 443 {
		l = strconv.AppendUint(append(l, ':'), uint64(port), 10)
	}
	if target := x.req.target; target[0] == '/' { // and not "*"
		return append(l, target...)
	}
	return append(l, '/')
}

// answer writes the gateway's own response to the request.
func (x *exchange) answer(a *answer, requestRead bool) {
	x.g.answer(x.ctx, a, requestRead)
	if a == answerRedirect {
		x.ctx.Response.Header.SetBytesV(fasthttp.HeaderLocation, x.location())
	}
}
