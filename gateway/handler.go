package gateway

import (
	"math"
	"runtime/debug"

	"github.com/valyala/fasthttp"

	"sallyport/gateway/balance"
)

const continueExpectation = "100-continue"

// headerReceived has a say in how fasthttp treats the body. Small bodies are read ahead; of large ones one byte is,
// as less cannot be asked for. A chunked body is declared endless, so that fasthttp hands out the bytes as they come
// and bodyReader decides where it ends: fasthttp takes the end of a connection for the end of such a body. Any Expect
// field, whatever it says, leads to the ExpectHandler before the body is read.
func headerReceived(h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	switch {
	case len(h.Peek(fasthttp.HeaderExpect)) == 0:
	case h.IsHTTP11():
		h.Set(fasthttp.HeaderExpect, continueExpectation)
	default: // RFC 9110 10.1.1: ignored
		h.Del(fasthttp.HeaderExpect)
	}
	switch length := h.ContentLength(); {
	case length < 0:
		if length == -1 {
			h.SetContentLength(math.MaxInt)
		}
	case length <= smallBody:
		return fasthttp.RequestConfig{MaxRequestBodySize: smallBody}
	}
	return fasthttp.RequestConfig{MaxRequestBodySize: 1}
}

// expect decides whether a client that asked for it is to send its body: only if the request has somewhere to go.
func (g *Gateway) expect(ctx *fasthttp.RequestCtx) (code int) {
	code = answerPanic.code
	x := g.newExchange(ctx)
	defer x.rescue()
	if _, _, problem := x.route(); problem != nil {
		x.answer(problem, false)
		code = problem.code
	} else {
		code = fasthttp.StatusContinue
	}
	x.release()
	return code
}

// handle serves one request.
func (g *Gateway) handle(ctx *fasthttp.RequestCtx) {
	x := g.newExchange(ctx)
	x.enter()
	x.c.enter(phaseWait, nil)
	defer x.rescue()
	if problem := x.serve(); problem != nil {
		x.leave()
		x.answer(problem, problem.code != 400 && problem != answerGone && x.requestRead())
		if x.req.close {
			ctx.SetConnectionClose()
		}
		x.release()
	} else if x.up == nil {
		x.release() // the response is complete; otherwise Close does it
	}
}

// enter counts the request among those in flight.
func (x *exchange) enter() {
	x.counted = true
	x.g.metrics.inFlight.Inc()
}

// leave takes back enter.
func (x *exchange) leave() {
	if x.counted {
		x.counted = false
		x.g.metrics.inFlight.Dec()
	}
}

// serve routes the request and gets a response, which is then in ctx.Response.
func (x *exchange) serve() *answer {
	st, picker, problem := x.route()
	if problem != nil {
		return problem
	}
	if problem := x.proxy(st, picker); problem != nil {
		return problem
	}
	if x.ctx.Response.StatusCode() == fasthttp.StatusSwitchingProtocols {
		x.upgrade()
	} else {
		x.respond()
	}
	return nil
}

// route reads the request and finds the picker of its route.
func (x *exchange) route() (*state, balance.Picker, *answer) {
	if problem := x.req.read(&x.ctx.Request.Header); problem != nil {
		return nil, nil, problem
	}
	st := x.g.state.Load()
	path := x.req.path
	if path[0] == '*' {
		path = rootPath
	}
	if st.table == nil {
		return nil, nil, answerStarting
	}
	r := st.table.Match(x.req.host, path)
	if r == nil {
		return nil, nil, answerNoRoute
	}
	if x.redirects(r) {
		return nil, nil, answerRedirect
	}
	if st.pickers[r.Index] == nil {
		return nil, nil, answerNoEndpoint
	}
	return st, st.pickers[r.Index], nil
}

// rootPath is what OPTIONS * is matched as.
var rootPath = []byte{'/'}

// rescue, deferred, answers a request whose handler panicked, and lets go of all that the request held but x itself.
func (x *exchange) rescue() {
	p := recover()
	if p == nil {
		return
	}
	g, ctx := x.g, x.ctx
	g.log.Error("request handler panicked", "panic", p, "stack", string(debug.Stack()))
	x.leave()
	if up := x.up; up != nil {
		x.stopUpload()
		x.c.detach()
		x.up = nil
		up.abort()
		x.endpoint.End()
	}
	g.answer(ctx, answerPanic, false)
}
