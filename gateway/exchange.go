package gateway

import (
	"bytes"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"sallyport/gateway/balance"
)

const (
	// maxTries is how many endpoints are tried for one request. That the endpoint has closed an idle connection is not
	// counted against it: one that is shutting down does that, and refuses the new connection next.
	maxTries = 2
	// smallBody is the largest body that is read as a whole before the endpoint hears of the request. It can be sent
	// again, it costs no goroutine, and a client cannot keep an endpoint waiting with it. It is what fasthttp reads
	// ahead at most.
	smallBody = 8 << 10
	// lastWrite is how long a connection may take to accept the last piece of a request that is answered already.
	lastWrite = 100 * time.Millisecond
)

// An exchange is one request on its way to an endpoint, and the response on its way back.
type exchange struct {
	g   *Gateway
	c   *conn
	ctx *fasthttp.RequestCtx
	req request

	forwardedFor []byte
	small        []byte     // the whole body of the request, if it is a small one
	in           bodyReader // the body of the request, if it is not
	out          bodyReader // the body of the response
	chunks       bytes.Reader

	endpoint *balance.Endpoint
	tried    []*balance.Endpoint
	up       *upstream
	unsent   bool // up did not take the whole request
	keep     bool // up can serve another request after this one
	counted  bool // among those in flight

	upload    sync.WaitGroup // the goroutine that sends a body which is not small
	uploading bool           // it was started
	bodyRead  atomic.Bool    // it has read the whole body
	uploaded  atomic.Bool    // it has sent the whole body
	stopping  atomic.Bool    // it is no longer wanted
	uploadErr error          // why it could not read the body; valid when upload is done
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

func (g *Gateway) newExchange(ctx *fasthttp.RequestCtx) *exchange {
	x := exchanges.Get().(*exchange)
	x.g, x.ctx, x.c = g, ctx, ctx.Conn().(*conn)
	x.tried, x.keep, x.counted, x.uploading, x.uploadErr = x.tried[:0], false, false, false, nil
	x.bodyRead.Store(false)
	x.uploaded.Store(false)
	x.stopping.Store(false)
	return x
}

// release gives x back for reuse.
func (x *exchange) release() {
	clear(x.tried[:cap(x.tried)])
	x.g, x.ctx, x.c, x.endpoint, x.up = nil, nil, nil, nil, nil
	x.in.src, x.out.src = nil, nil
	x.chunks.Reset(nil)
	exchanges.Put(x)
}

// requestRead reports whether the client's next bytes are a new request.
func (x *exchange) requestRead() bool {
	switch x.req.framing {
	case framingNone:
		return true
	case framingLength:
		if x.req.length <= smallBody {
			return true // fasthttp has read it
		}
	}
	return x.bodyRead.Load()
}

// proxy sends the request to an endpoint and reads the header of its response into ctx.Response. On success x holds
// the connection, with the response's body still to be read.
func (x *exchange) proxy(st *state, picker balance.Picker) *answer {
	if problem := x.prepareBody(); problem != nil {
		return problem
	}
	var failure *answer
	want := connAny
	if !x.repeatable() {
		want = connSure
	}
	for len(x.tried) < maxTries {
		if want != connNew { // otherwise the endpoint gets a second chance
			if x.endpoint = picker.Pick(x.tried); x.endpoint == nil {
				break
			}
		}
		if failure != nil {
			x.g.metrics.retries.Inc()
		}
		up, err := st.pools[x.endpoint].get(want)
		if err != nil {
			failure, want = connectFailure(err), connSure
			x.tried = append(x.tried, x.endpoint)
			continue
		}
		var stale bool
		if failure, stale = x.try(up); !stale {
			return failure
		}
		want = connNew
	}
	if failure == nil {
		return answerNoEndpoint
	}
	return failure
}

// connectFailure tells an endpoint that refuses from one that does not answer.
func connectFailure(err error) *answer {
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return answerTimeout
	}
	return answerUnreached
}

// prepareBody takes in a small body and gets a large one ready for streaming.
func (x *exchange) prepareBody() *answer {
	x.small = x.small[:0]
	body := x.ctx.RequestBodyStream()
	switch r := &x.req; {
	case r.framing == framingNone:
	case r.framing == framingLength && r.length <= smallBody:
		x.small = append(x.small, make([]byte, r.length)...)
		if _, err := io.ReadFull(body, x.small); err != nil {
			return answerBody
		}
	default:
		x.in.reset(body, r.framing, r.length)
	}
	return nil
}

// try does the exchange on the connection, up to the response's header. If it fails, it is closed; stale says that
// this was because the endpoint had closed an idle connection, and that the request may be sent once more.
func (x *exchange) try(up *upstream) (failure *answer, stale bool) {
	x.up, up.owner = up, x.c
	x.endpoint.Begin()
	x.c.enter(phaseWait, up)
	n, err := x.send()
	x.unsent = err != nil
	if err == nil || !up.reused {
		if headErr := x.readHead(); headErr == nil {
			return nil, false
		} else if err == nil {
			err = headErr
		}
	}
	return x.fail(n > 0, err)
}

// fail ends an exchange that brought no response, and says what to tell the client.
func (x *exchange) fail(sent bool, err error) (failure *answer, stale bool) {
	up := x.up
	v := x.c.detach()
	x.stopUpload()
	up.abort()
	x.endpoint.End()
	x.up = nil
	switch {
	case v == verdictGone:
		return answerGone, false
	case v == verdictSlowServer:
		return answerTimeout, false
	case v == verdictSlowClient:
		return answerSlow, false
	case x.uploadErr != nil:
		return answerBody, false
	case up.reused && !up.received && !x.uploading:
		return answerBroken, !sent || x.idempotent()
	}
	x.g.log.Debug("no valid response", "endpoint", x.endpoint.Addr().String(), "err", err)
	return answerBroken, false
}

// repeatable reports whether the request can be sent again if it meets a stale connection. If not, it is worth a
// system call to see that the connection is not.
func (x *exchange) repeatable() bool { return x.requestRead() && x.idempotent() }

// idempotent reports whether the request may be sent twice (RFC 9110 9.2.2).
func (x *exchange) idempotent() bool {
	switch string(x.req.method) {
	case fasthttp.MethodGet, fasthttp.MethodHead, fasthttp.MethodOptions, fasthttp.MethodPut, fasthttp.MethodDelete:
		return true
	}
	return len(x.ctx.Request.Header.Peek("Idempotency-Key")) > 0
}

// send writes the request's header and a small body, and starts the upload of any other. It returns how many bytes
// the kernel took.
func (x *exchange) send() (int, error) {
	up := x.up
	up.head = x.appendHead(up.head[:0])
	up.head = append(up.head, x.small...)
	n, err := up.Write(up.head)
	if err == nil && !x.requestRead() {
		x.uploading = true
		x.upload.Go(x.sendBody)
	}
	return n, err
}

// sendBody sends a streamed body while the response is awaited, or even read. When the client breaks off, so does it:
// the endpoint must not see a whole body.
func (x *exchange) sendBody() {
	defer func() {
		if p := recover(); p != nil {
			x.g.log.Error("upload panicked", "panic", p, "stack", string(debug.Stack()))
			x.up.abort()
		}
	}()
	readErr, writeErr := x.copyBody()
	switch {
	case readErr != nil:
		if !x.stopping.Load() { // then the reason is not the client
			x.uploadErr = readErr
		}
		x.up.abort()
	case writeErr == nil:
		x.uploaded.Store(true)
	}
}

// copyBody copies the request's body to the endpoint, each piece as soon as it comes.
func (x *exchange) copyBody() (readErr, writeErr error) {
	buf := copyBuffers.Get().(copyBuffer)
	defer copyBuffers.Put(buf)
	w := bodyWriter{w: x.up, chunked: x.req.framing == framingChunked}
	for {
		n, err := x.in.Read(w.room(buf[:]))
		if x.in.ended {
			x.bodyRead.Store(true) // before the endpoint can know: its answer may be quick
		}
		if n > 0 {
			if writeErr = w.write(buf[:], n); writeErr != nil {
				return nil, writeErr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, w.finish(buf[:], x.in.trailers)
		case err != nil:
			return err, nil
		}
	}
}

// stopUpload ends the upload, if one goes on, and waits for its end. The upstream connection cannot be used afterwards.
func (x *exchange) stopUpload() {
	if !x.uploading {
		return
	}
	switch {
	case x.uploaded.Load():
	case x.bodyRead.Load(): // the last write is about to return, unless the endpoint does not read
		_ = x.up.tcp.SetWriteDeadline(time.Now().Add(lastWrite))
		x.upload.Wait()
		_ = x.up.tcp.SetWriteDeadline(time.Time{})
	default:
		x.stopping.Store(true)
		x.c.linger = true
		x.up.tcp.Close()
		_ = x.c.SetReadDeadline(past)
	}
	x.upload.Wait()
	x.keep = x.keep && x.uploaded.Load()
}
