package gateway

import (
	"errors"
	"net"

	"github.com/valyala/fasthttp"
)

// An answer is a response of the gateway itself. Its text is for the person in front of the client and says nothing
// about what is behind the gateway.
type answer struct {
	code   int
	reason string // label of the error metric; empty if it is no error
	text   string
}

var (
	answerRedirect   = &answer{308, "", "This is served over HTTPS."} // no error, hence no reason
	answerBareLF     = &answer{400, "bad_framing", "A line of the request's header does not end in CR LF."}
	answerFieldName  = &answer{400, "bad_framing", "The request's header has a line that is not a field."}
	answerFraming    = &answer{400, "bad_framing", "The request does not say unambiguously where its body ends."}
	answerConnection = &answer{400, "bad_framing", "The request's Connection field names too many fields."}
	answerSyntax     = &answer{400, "bad_request", "The request cannot be read as HTTP."}
	answerClear      = &answer{400, "clear", "This port speaks HTTPS, and the request came in plain HTTP."}
	answerBody       = &answer{400, "bad_body", "The request's body is broken or incomplete."}
	answerHost       = &answer{400, "bad_host", "The request's host is missing or not valid."}
	answerTarget     = &answer{400, "bad_target", "The request's path is not valid."}
	answerNoRoute    = &answer{404, "no_route", "Nothing is served at this host and path."}
	answerMethod     = &answer{405, "method", "This method is not supported here."}
	answerSlow       = &answer{408, "slow_client", "The request took too long to arrive."}
	answerExpect     = &answer{417, "bad_request", "The request expects something that is not supported here."}
	answerTooLarge   = &answer{431, "header_too_large", "The request's header is too large."}
	answerGone       = &answer{499, "client_gone", "The client has closed the connection."}
	answerPanic      = &answer{500, "panic", "The request could not be handled because of an internal error."}
	answerUnreached  = &answer{502, "connect", "The service behind this address cannot be reached."}
	answerBroken     = &answer{502, "bad_response", "The service behind this address sent no valid response."}
	answerNoEndpoint = &answer{503, "no_endpoint", "The service behind this address has nothing running at the moment."}
	answerStarting   = &answer{503, "starting", "This gateway has just started and does not know its routes yet."}
	answerTimeout    = &answer{504, "timeout", "The service behind this address did not respond in time."}
	answerVersion    = &answer{505, "bad_request", "This version of HTTP is not supported here."}
)

const (
	serverName = "sallyport"
	plainText  = "text/plain; charset=utf-8"
)

// body is the text of the response.
func (a *answer) body() string { return fasthttp.StatusMessage(a.code) + "\n\n" + a.text + "\n" }

// answer writes the gateway's own response. Unless the whole request was read, the connection is closed after it.
func (g *Gateway) answer(ctx *fasthttp.RequestCtx, a *answer, requestRead bool) {
	if a.reason != "" {
		g.metrics.countError(a)
	}
	g.metrics.countCode(a.code)
	ctx.Response.Reset() // which also lets fasthttp add the Date
	h := &ctx.Response.Header
	h.SetNoDefaultContentType(true)
	ctx.SetStatusCode(a.code)
	h.SetContentType(plainText)
	ctx.Response.SetBodyString(a.body())
	h.SetServer(serverName)
	if g.draining.Load() {
		ctx.SetConnectionClose()
	}
	if !requestRead {
		ctx.SetConnectionClose()
		if c, ok := ctx.Conn().(*conn); ok {
			c.linger = true
		}
	}
}

// refuse answers what fasthttp could not read as a request.
func (g *Gateway) refuse(ctx *fasthttp.RequestCtx, err error) {
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		g.answer(ctx, answerTooLarge, false)
	case errors.As(err, &netErr) && netErr.Timeout():
		g.answer(ctx, answerSlow, false)
	default:
		g.answer(ctx, answerSyntax, false)
	}
}
