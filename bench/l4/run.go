package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"sallyport/bench/l4/api"
	"sallyport/bench/lab/network"
)

// A runner is a contender on its edge, with an API server of its own: all serve the same state, and a change goes to
// the one that is being measured only.
type runner struct {
	contender
	edge       *edgeHost
	site       *site
	dir        string // its configuration and log
	kubeconfig string
	services   int
	server     *api.Server
	process    *process // nil while it does not run
	log        *slog.Logger
}

// place puts a contender on an edge that nobody has. The folder dir is made.
func (s *site) place(c contender, e *edgeHost, dir string, log *slog.Logger) (*runner, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return &runner{contender: c, edge: e, site: s, dir: dir, log: log}, c.prepare(e, s)
}

// nodes are the cluster's: the one that has the endpoints, and the edges that are members.
func (s *site) nodes() []*corev1.Node {
	all := []*corev1.Node{api.Node(api.NodeName, s.node.NodesAddr, api.Pods)}
	for _, e := range s.members {
		all = append(all, api.Node(e.Name, e.NodesAddr, netip.Prefix{}))
	}
	return all
}

// kubeconfigFormat is a kubeconfig whose server asks for no credentials.
const kubeconfigFormat = `{"apiVersion": "v1", "kind": "Config", "current-context": "bench",
"clusters": [{"name": "bench", "cluster": {"server": %q}}], "users": [{"name": "bench", "user": {}}],
"contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]}`

// serve starts an API server of the state for the runner.
func (r *runner) serve(state *api.State) error {
	r.server, r.services = api.NewServer(state), len(state.Services)
	r.site.ports++
	url, err := r.site.serve(apiPort+r.site.ports, func(l net.Listener) {
		go func() { _ = http.Serve(l, r.server) }() // ends with the listener
	})
	r.kubeconfig = filepath.Join(r.dir, "kubeconfig")
	return errors.Join(err, os.WriteFile(r.kubeconfig, fmt.Appendf(nil, kubeconfigFormat, url), 0o600))
}

// start starts the program.
func (r *runner) start() error {
	argv, err := r.command(r.edge, r.kubeconfig, r.dir)
	if err != nil {
		return err
	}
	r.process, err = start(r.edge.Host, filepath.Join(r.dir, "log"), argv...)
	return err
}

// stop kills the program, if it runs, and removes what it has left in the kernel.
func (r *runner) stop() error {
	if r.process == nil {
		return nil
	}
	r.process.kill()
	r.process = nil
	return r.clean(r.edge, r.dir)
}

// vip is where a Service is reached.
func vip(service int) netip.AddrPort { return netip.AddrPortFrom(api.VIP(service), api.ServicePort) }

// pollEvery is the time between two connections that look whether something has come about.
const pollEvery = time.Millisecond

// await connects to a Service until ok says that the endpoint that answers is the one waited for, and returns when that was.
func (r *runner) await(ctx context.Context, to netip.AddrPort, ok func(netip.Addr) bool) (at time.Time, err error) {
	err = r.site.client.Do(func() error {
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for {
			endpoint, err := ask(r.edge.source, to, 50*time.Millisecond)
			if err == nil && ok(endpoint) {
				at = time.Now()
				return nil
			}
			select {
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("%s: wait for %v: %w; the last answer is of %v", r.name(), to, ctx.Err(), endpoint), err)
			case <-r.process.ended:
				return r.process.failed()
			case <-tick.C:
			}
		}
	})
	return at, err
}

// awaitAll waits until the first, the middle and the last Service answer.
func (r *runner) awaitAll(ctx context.Context) (at time.Time, err error) {
	for _, i := range byAddress(r.services) {
		if at, err = r.await(ctx, vip(i), func(netip.Addr) bool { return true }); err != nil {
			return at, err
		}
	}
	return at, nil
}

// get reads a page on a host.
func get(h *network.Host, url string) (string, error) {
	response, err := h.HTTPClient().Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return string(body), err
}
