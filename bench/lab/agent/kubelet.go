package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
)

// KubeletPort is where the agent answers the kubelet's API, on its node's address.
const KubeletPort = 10250

// administrators is the group whose members may use the kubelet's API; the API server's client certificate says so.
const administrators = "system:masters"

// KubeletTLS reads what [Config.Kubelet] needs: the node's serving certificate, and the authority whose certificates
// clients must present.
func KubeletTLS(certFile, keyFile, clientCAFile string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("load serving certificate: %w", err)
	}
	text, err := os.ReadFile(clientCAFile)
	if err != nil {
		return nil, fmt.Errorf("load certificate authority of clients: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("load certificate authority of clients: %s holds no PEM certificate", clientCAFile)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients,
	}, nil
}

// kubeletServer answers the part of the kubelet's API that kubectl logs needs:
//
//	GET /containerLogs/NAMESPACE/POD/CONTAINER
type kubeletServer struct {
	pods *manager
	http *http.Server
	done chan struct{}
}

// serveKubelet starts the server at ip in the node's namespace. Its requests end with ctx at the latest.
func serveKubelet(ctx context.Context, node netns.NsHandle, ip netip.Addr, config *tls.Config, pods *manager, log *slog.Logger) (*kubeletServer, error) {
	var listener net.Listener
	err := inNetNS(node, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(ip, KubeletPort).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen for the kubelet's API: %w", err)
	}
	s := &kubeletServer{pods: pods, done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	s.http = &http.Server{
		Handler:           administratorsOnly(mux),
		ReadHeaderTimeout: requestTimeout,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(tls.NewListener(listener, config)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve the kubelet's API", "err", err)
		}
	}()
	return s, nil
}

// stop returns when no request is being answered any more. The context of serveKubelet must have ended.
func (s *kubeletServer) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	<-s.done
}

// administratorsOnly refuses clients whose certificate, which TLS has verified, does not name the group.
func administratorsOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		subject := r.TLS.PeerCertificates[0].Subject
		if !slices.Contains(subject.Organization, administrators) {
			http.Error(w, fmt.Sprintf("user %q is not in the group %s", subject.CommonName, administrators), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *kubeletServer) containerLogs(w http.ResponseWriter, r *http.Request) {
	options, err := parseLogOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, name := r.PathValue("pod"), r.PathValue("container")
	worker := s.pods.find(r.PathValue("namespace"), pod)
	if worker == nil {
		http.Error(w, fmt.Sprintf("pod %q does not run on this node", pod), http.StatusNotFound)
		return
	}
	file, ok := worker.logs[name]
	if !ok {
		http.Error(w, fmt.Sprintf("container %q is not in pod %q", name, pod), http.StatusNotFound)
		return
	}
	run, err := worker.logRun(name, options.previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := flushWriter{w, http.NewResponseController(w)}
	if _, err = out.Write(nil); err == nil { // the header goes before the first line comes
		err = run.write(r.Context(), out, file.path, options)
	}
	if err != nil && r.Context().Err() == nil {
		worker.log.Warn("send log", "container", name, "err", err)
	}
}

// flushWriter sends what is written at once.
type flushWriter struct {
	io.Writer
	*http.ResponseController
}

// Write writes and flushes.
func (w flushWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	return n, errors.Join(err, w.Flush())
}

// logRun finds the run of a container that is asked for, by the rules of kubelet: a container that waits to be
// started again has ended once, and that is both its last and its previous run.
func (w *podWorker) logRun(container string, previous bool) (*logRun, error) {
	status := w.containerStatus(container)
	run, before := w.logs[container].runs()
	if previous && status.State.Waiting == nil {
		run = before
	}
	switch {
	case run != nil:
		return run, nil
	case previous:
		return nil, fmt.Errorf("previous terminated container %q in pod %q not found", container, w.name)
	case status.State.Waiting != nil:
		return nil, fmt.Errorf("container %q in pod %q is waiting to start: %s", container, w.name, status.State.Waiting.Reason)
	}
	return nil, fmt.Errorf("container %q in pod %q has not been started by this node agent", container, w.name)
}

func (w *podWorker) containerStatus(name string) corev1.ContainerStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range slices.Concat(w.seen.inits, w.seen.mains) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

// parseLogOptions reads the query of a log request, which is a corev1.PodLogOptions. Output has no time of its own
// here, so what depends on one is refused.
func parseLogOptions(query url.Values) (o logOptions, err error) {
	for _, name := range []string{"sinceSeconds", "sinceTime", "timestamps"} {
		if value := query.Get(name); value != "" && value != "false" {
			return o, fmt.Errorf("%s is not supported by the lab's node agent: it does not record when a line was written", name)
		}
	}
	if stream := query.Get("stream"); stream != "" && stream != corev1.LogStreamAll {
		return o, fmt.Errorf("stream %q is not supported by the lab's node agent: only %s is", stream, corev1.LogStreamAll)
	}
	var errs [4]error
	o.follow, errs[0] = boolOption(query, "follow")
	o.previous, errs[1] = boolOption(query, "previous")
	o.tailLines, errs[2] = countOption(query, "tailLines")
	o.limitBytes, errs[3] = countOption(query, "limitBytes")
	return o, errors.Join(errs[:]...)
}

func boolOption(query url.Values, name string) (bool, error) {
	text := query.Get(name)
	if text == "" {
		return false, nil
	}
	value, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%s: %q is neither true nor false", name, text)
	}
	return value, nil
}

// countOption returns -1 for an option that is not given.
func countOption(query url.Values, name string) (int64, error) {
	text := query.Get(name)
	if text == "" {
		return -1, nil
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil || value < 0 {
		return 0, fmt.Errorf("%s: %q is not a number of 0 or more", name, text)
	}
	return value, nil
}
