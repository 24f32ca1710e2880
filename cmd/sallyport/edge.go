package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sync/errgroup"

	"sallyport/cmd/sallyport/admin"
	"sallyport/cmd/sallyport/config"
	"sallyport/gateway"
	"sallyport/gateway/stream"
	"sallyport/rules"
	"sallyport/watcher"
	"sallyport/watcher/model"
	"sallyport/watcher/reach"
	"sallyport/watcher/translate"
)

// An edge is everything that runs on this machine, assembled but not yet started.
type edge struct {
	config   config.Config
	log      *slog.Logger
	registry *prometheus.Registry

	admin    *admin.Server
	gateway  *gateway.Gateway // nil if L7 is off
	prober   *reach.Prober
	pipeline *pipeline
	lane     *lane
	watchL4  func(context.Context) error // returns when it is done, or failed
	closeL4  func()
}

// newEdge binds every port and finds every tool, so that what is missing is known before traffic is touched.
func newEdge(c config.Config, sources []watcher.Source, log *slog.Logger, registry *prometheus.Registry) (*edge, error) {
	e := &edge{config: c, log: log, registry: registry, closeL4: func() {}}
	e.watchL4 = func(context.Context) error { return nil }
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	buildInfo(registry)
	trigger := watcher.NewTrigger(watcher.CoalesceDelay)
	e.prober = reach.New(reach.Options{Changed: trigger.Mark, Log: log.With("part", "reach"), Metrics: registry})
	steps, err := e.bind(trigger)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	e.pipeline = e.newPipeline(sources, trigger, steps)
	return e, nil
}

// bind makes what Reconcile will be called on, in the order of the calls.
func (e *edge) bind(trigger *watcher.Trigger) (sequence, error) {
	c := e.config
	var err error
	if e.admin, err = admin.Listen(admin.Options{Address: c.Edge.Admin.Address.String(), Metrics: e.registry, Ready: e.ready}); err != nil {
		return nil, err
	}
	l4, err := e.newL4(trigger)
	if err != nil {
		return nil, err
	}
	steps := sequence{l4}
	if c.Reach == model.ReachAuto {
		steps = append(steps, step{"reach", e.prober}) // after the routes that it probes are there
	}
	if !c.L7.Enabled {
		return steps, nil
	}
	e.gateway = newGateway(c, e.log, e.registry)
	if err := e.gateway.Listen(); err != nil {
		return nil, fmt.Errorf("%w (l7.addresses and l7.httpPort say where HTTP is served)", err)
	}
	return append(sequence{{"gateway", e.gateway}}, steps...), nil
}

func newGateway(c config.Config, log *slog.Logger, r prometheus.Registerer) *gateway.Gateway {
	return gateway.New(gateway.Options{
		Addresses:       c.L7.ListenAddresses(),
		TrustedProxies:  c.L7.TrustedProxies,
		MaxHeaderBytes:  c.L7.MaxRequestHeaderBytes,
		HeaderTimeout:   c.L7.RequestHeaderTimeout,
		IdleTimeout:     c.L7.IdleTimeout,
		ConnectTimeout:  c.L7.ConnectTimeout,
		ResponseTimeout: c.L7.ResponseHeaderTimeout,
		DrainTime:       c.L7.DrainTime,
		Log:             log,
		Metrics:         r,
	})
}

// newL4 makes the reconciler of the configured dataplane.
func (e *edge) newL4(trigger *watcher.Trigger) (step, error) {
	if e.config.L4.Dataplane == config.DataplaneUserspace {
		p := stream.New(stream.Options{NodePortAddresses: hosts(e.config.L4.NodePortAddresses),
			Log: e.log.With("part", "stream"), Metrics: e.registry})
		e.closeL4 = p.Close
		return step{"stream", p}, nil
	}
	o := rulesOptions(e.config)
	o.Log, o.Metrics = e.log, e.registry
	e.watchL4 = func(ctx context.Context) error { return rules.Watch(ctx, trigger.Mark) }
	k, err := rules.NewKernel(o)
	return step{"rules", k}, err
}

// rulesOptions is the part of the configuration that rules are rendered by.
func rulesOptions(c config.Config) rules.Options {
	return rules.Options{
		Backend:           rules.Backend(c.L4.IptablesBackend),
		NodePortAddresses: c.L4.NodePortAddresses,
		SNAT:              rules.SNAT(c.L4.SNAT),
		HashSeed:          c.L4.HashSeed,
		Reach:             c.Reach,
	}
}

// hosts are the addresses of prefixes that are single addresses, as user space can only listen on those.
func hosts(prefixes []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range prefixes {
		out = append(out, p.Addr())
	}
	return out
}

func (e *edge) newPipeline(sources []watcher.Source, trigger *watcher.Trigger, steps sequence) *pipeline {
	e.lane = &lane{
		name: "edge", r: steps, in: newMailbox(), log: e.log.With("part", "edge"),
		results: promauto.With(e.registry).NewCounterVec(prometheus.CounterOpts{
			Name: "sallyport_reconciles_total", Help: "Reconciliations of a snapshot, by lane and result.",
		}, []string{"lane", "result"}),
	}
	o := translateOptions(e.config, e.prober.PodsReachable)
	o.OwnAddresses = ownAddresses(e.log)
	return &pipeline{
		sources:  sources,
		options:  o,
		pools:    e.config.Pools,
		lanes:    []*lane{e.lane},
		trigger:  trigger,
		problems: newProblemLog(e.log, e.registry),
		metrics:  newPipelineMetrics(e.registry),
		log:      e.log.With("part", "pipeline"),
	}
}

func translateOptions(c config.Config, reachable func(model.ObjectRef) bool) translate.Options {
	o := translate.Options{Reach: c.Reach, PodsReachable: reachable}
	if c.L7.Enabled {
		o.ListenPorts = append(o.ListenPorts, translate.ListenPort{Protocol: model.TCP, Port: c.L7.HTTPPort, What: "l7.httpPort"})
	}
	if a := c.Edge.Admin.Address; !a.Addr().IsLoopback() {
		o.ListenPorts = append(o.ListenPorts, translate.ListenPort{Protocol: model.TCP, Port: a.Port(), What: "edge.admin.address"})
	}
	return o
}

// ownAddresses are the machine's, as they are at the start, without VIPs: those may be many, and lead back to endpoints.
// Loopback is refused anyway.
func ownAddresses(log *slog.Logger) []netip.Addr {
	var out []netip.Addr
	links, err := net.Interfaces()
	for _, link := range links {
		if link.Name == rules.DefaultLink || link.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, failed := link.Addrs()
		err = errors.Join(err, failed)
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				out = append(out, p.Addr().Unmap())
			}
		}
	}
	if err != nil {
		log.Warn("not all own addresses are known, so endpoints are not checked against them", "err", err)
	}
	return out
}

// ready says what /readyz waits for: the first snapshot in the kernel and in the route table. Later failures show in
// metrics; an edge that serves an older snapshot is better than none.
func (e *edge) ready() error {
	if e.lane == nil || e.lane.applied.Load() == 0 {
		return errors.New("waiting for the first snapshot to be applied")
	}
	return nil
}

// run serves until ctx ends. Then L7 finishes its requests, still following changes, and everything else stops; rules
// stay in the kernel.
func (e *edge) run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, failed := errgroup.WithContext(background)
	g.Go(func() error { return e.pipeline.run(failed) })
	g.Go(func() error { return e.prober.Run(failed) })
	g.Go(func() error { return e.watchL4(failed) })
	g.Go(func() error { return e.admin.Serve(failed) })
	g.Go(func() error {
		defer stop()
		return e.serveL7(ctx, failed)
	})
	defer e.closeL4()
	return g.Wait()
}

// serveL7 returns when ctx has ended and requests are drained, or when another part has failed.
func (e *edge) serveL7(ctx, failed context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(failed, cancel)()
	if e.gateway != nil {
		return e.gateway.Serve(ctx)
	}
	<-ctx.Done()
	return nil
}

// close releases what bind has bound when the edge is not run.
func (e *edge) close() error {
	e.closeL4()
	if e.admin == nil {
		return nil
	}
	return e.admin.Close()
}
