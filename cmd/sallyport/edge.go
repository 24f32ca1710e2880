package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"sallyport/cmd/sallyport/admin"
	"sallyport/cmd/sallyport/config"
	"sallyport/cmd/sallyport/systemd"
	"sallyport/gateway"
	"sallyport/watcher"
	"sallyport/watcher/model"
	"sallyport/watcher/reach"
	"sallyport/watcher/status"
	"sallyport/watcher/translate"
)

// An edge is everything that runs on this machine, assembled but not yet started.
type edge struct {
	config   config.Config
	log      *slog.Logger
	registry *prometheus.Registry
	started  time.Time

	admin    *admin.Server
	gateway  *gateway.Gateway // nil if L7 is off
	sockets  *sockets         // nil if none outlive the process
	prober   *reach.Prober
	pipeline *pipeline
	lane     *lane                       // of this machine: what /readyz waits for
	writer   *status.Writer              // nil if nothing is written back
	watchL4  func(context.Context) error // returns when it is done, or failed
	closeL4  func()
}

// newEdge binds every port and finds every tool, so that what is missing is known before traffic is touched.
func newEdge(c config.Config, inputs []input, log *slog.Logger, registry *prometheus.Registry) (*edge, error) {
	e := &edge{config: c, log: log, registry: registry, started: time.Now(), closeL4: func() {}}
	e.watchL4 = func(context.Context) error { return nil }
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	buildInfo(registry)
	trigger := watcher.NewTrigger(watcher.CoalesceDelay)
	e.prober = reach.New(reach.Options{Reach: c.Reach, IPv6: true, Changed: trigger.Mark, Log: log.With("part", "reach"), Metrics: registry})
	e.sockets = inheritSockets(log)
	steps, err := e.bind(inputs, trigger)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	e.sockets.forgetRest(context.Background())
	if e.pipeline, err = e.newPipeline(inputs, trigger, steps); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// bind makes what Reconcile will be called on, in the order of the calls.
func (e *edge) bind(inputs []input, trigger *watcher.Trigger) (sequence, error) {
	c := e.config
	if err := e.listenAdmin(); err != nil {
		return nil, err
	}
	l4, err := e.newL4(inputs, trigger)
	if err != nil {
		return nil, err
	}
	steps := sequence{l4}
	if c.Reach != model.ReachPods {
		steps = append(steps, step{"reach", e.prober}) // after the routes that it probes are there
	}
	if !c.L7.Enabled {
		return steps, nil
	}
	if err := e.newL7(); err != nil {
		return nil, err
	}
	return append(sequence{{"gateway", e.gateway}}, steps...), nil
}

// listenAdmin binds the admin address and socket. A socket that cannot be made is an error only where the configuration
// asks for it: the default one is not to keep those from running the program who may not write to /run.
func (e *edge) listenAdmin() error {
	o := admin.Options{Address: e.config.Edge.Admin.Address.String(), Socket: e.config.Edge.Admin.Socket,
		Metrics: e.registry, Ready: e.ready, Views: e}
	var err error
	e.admin, err = admin.Listen(o)
	if refused := errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS); refused && o.Socket == config.DefaultSocket {
		e.log.Warn("sallyport status and explain will not work", "err", err)
		o.Socket = ""
		e.admin, err = admin.Listen(o)
	}
	return err
}

func (e *edge) newPipeline(inputs []input, trigger *watcher.Trigger, steps sequence) (*pipeline, error) {
	problems := newProblemBook(e.log, e.registry)
	results := laneResults(e.registry)
	e.lane = newLane("edge", steps, problems, results, e.log)
	o := translateOptions(e.config, e.prober.PodsReachable)
	o.IPv6PodsReachable, o.NodeHealthy = e.prober.IPv6PodsReachable, e.prober.NodeHealthy
	o.OwnAddresses = ownAddresses(e.log)
	p := &pipeline{
		inputs:   inputs,
		options:  o,
		pools:    e.config.Pools,
		lanes:    []*lane{e.lane},
		trigger:  trigger,
		problems: problems,
		metrics:  newPipelineMetrics(e.registry),
		log:      e.log.With("part", "pipeline"),
	}
	for _, i := range inputs {
		if i.api == nil || !e.config.Status.Enabled {
			continue
		}
		lane, err := e.newStatusLane(i, problems, results)
		if err != nil {
			return nil, err
		}
		p.lanes = append(p.lanes, lane)
	}
	return p, nil
}

func translateOptions(c config.Config, reachable func(model.ObjectRef) bool) translate.Options {
	kernel := c.L4.Dataplane != config.DataplaneUserspace
	o := translate.Options{
		Reach: c.Reach, PodsReachable: reachable, IPv6PodsReachable: reachable, IPv6: true, SCTP: kernel, ProxyProtocol: !kernel, KeepsSource: c.L4.KeepsSource(),
		ExternalIPs: c.L4.ExternalIPs, ClusterIPs: c.L4.ClusterIPs, Zone: c.Edge.Zone,
		TLS: c.L7.Enabled && c.L7.HTTPSPort != 0, DefaultCertificate: c.L7.DefaultCertificateName(), RedirectHTTPS: c.L7.TLS.Redirect,
		Certificates: new(translate.CertificateCache), Memo: new(translate.Memo),
	}
	if c.L7.Enabled {
		o.ListenPorts = append(o.ListenPorts, translate.ListenPort{Protocol: model.TCP, Port: c.L7.HTTPPort, What: "l7.httpPort"})
	}
	if o.TLS {
		o.ListenPorts = append(o.ListenPorts, translate.ListenPort{Protocol: model.TCP, Port: c.L7.HTTPSPort, What: "l7.httpsPort"})
	}
	if a := c.Edge.Admin.Address; !a.Addr().IsLoopback() {
		o.ListenPorts = append(o.ListenPorts, translate.ListenPort{Protocol: model.TCP, Port: a.Port(), What: "edge.admin.address"})
	}
	return o
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
	g.Go(func() error { return e.announce(ctx, failed) })
	if e.writer != nil {
		g.Go(func() error { return e.writer.Run(failed) })
	}
	g.Go(func() error {
		defer stop()
		return e.serveL7(ctx, failed)
	})
	defer e.closeL4()
	return g.Wait()
}

// stopTime is what the end takes beside the two drains of L7: that of requests and that of their successors.
const stopTime = 10 * time.Second

// startTime is how long clients and systemd wait for a first snapshot before they are told that there is none.
const startTime = 10 * time.Second

// announce tells systemd how the edge does: ready with the first snapshot, or in vain after startTime, since an edge without a
// cluster is no reason to start it again; alive while no reconcile hangs; stopping when ctx ends.
func (e *edge) announce(ctx, background context.Context) error {
	defer context.AfterFunc(ctx, func() { e.notify(systemd.StoppingWithin(2*e.config.L7.DrainTime + stopTime)) })()
	select {
	case <-background.Done():
		return nil
	case <-e.lane.first:
	case <-time.After(startTime):
	}
	e.notify(systemd.Ready)
	if err := systemd.Watchdog(background, func(context.Context) error { return e.alive() }); err != nil {
		e.log.Warn("systemd will take the edge for dead", "err", err)
	}
	return nil
}

func (e *edge) notify(state string) {
	if err := systemd.Notify(state); err != nil {
		e.log.Warn("systemd is not told", "state", state, "err", err)
	}
}

// alive fails when a reconcile has hung for so long that only a new process can help.
func (e *edge) alive() error {
	const limit = 2 * time.Minute // 30,000 services from nothing take seconds
	if d := e.lane.stuck(); d > limit {
		return fmt.Errorf("a reconcile has been under way for %v", d)
	}
	return nil
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

// close releases what bind has bound when the edge is not run, but for the ports of L7, which end with the process.
func (e *edge) close() error {
	e.closeL4()
	if e.admin == nil {
		return nil
	}
	return e.admin.Close()
}
