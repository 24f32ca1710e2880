// Package reach finds out, node by node, whether this edge gets to pods directly (reach pods) or only through the
// nodes' node ports (reach nodes), and, of the latter, whether they have endpoints of Services with externalTrafficPolicy Local.
//
// The answer is an input of translation, beside the objects: when it changes, the pipeline runs again. A node whose
// pods have not been probed yet is reached through its node ports, which needs nothing of the network.
package reach

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"sallyport/watcher/model"
)

// Options configure a Prober. Zero durations mean the defaults.
type Options struct {
	// Reach is that of the configuration. Pods are tried with auto alone.
	Reach model.Reach
	// IPv6 says that pods are tried in that family, too.
	IPv6 bool
	// Dial tries a TCP connection and closes it. The default is a plain net.Dialer.
	Dial func(ctx context.Context, addr netip.AddrPort) error
	// Get sends an HTTP GET and returns the status of the answer. The default is a client that follows no redirects.
	Get func(ctx context.Context, url string) (status int, err error)
	// Timeout of one try. Default 1 s.
	Timeout time.Duration
	// Interval between probes of a node whose answer is known. Default 10 s.
	Interval time.Duration
	// HealthInterval between questions to one healthCheckNodePort of a node. Default 3 s, and more where there are many.
	HealthInterval time.Duration
	// Changed is called when a node's answer changes. It must not block.
	Changed func()
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// failuresToFall is how many probes in a row must fail before a node that was reached directly is not: one pod that is
// just going away proves nothing.
const failuresToFall = 3

// candidates is how many pods of a node are tried in one probe.
const candidates = 3

// A Prober keeps the answer for each node. Its methods may be called concurrently.
type Prober struct {
	o       Options
	wake    chan struct{}
	metrics *prometheus.GaugeVec
	health  *health

	mu    sync.Mutex
	nodes map[target]*node
}

// A target is a node in one family: its pods may be routed in the other alone.
type target struct {
	node model.ObjectRef
	ipv6 bool
}

// node is what is known of one target.
type node struct {
	probes   probes // what to try
	probed   bool   // an answer has been found at least once
	doubtful bool   // the answer is of addresses that anything may have, and there are better ones to try now
	pods     bool   // the answer: pods are reached directly
	failures int    // probes in a row without an answer
}

// probes are pods of a node, at most candidates of each kind.
type probes struct {
	tcp []netip.AddrPort // take connections
	udp []netip.AddrPort // refuse them; asked only where there are no others
	own bool             // their addresses are of the node's podCIDRs
}

func (p probes) none() bool { return len(p.tcp)+len(p.udp) == 0 }

// New returns a Prober that knows no node.
func New(o Options) *Prober {
	if o.Dial == nil {
		o.Dial = dial
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	if o.Interval == 0 {
		o.Interval = 10 * time.Second
	}
	if o.HealthInterval == 0 {
		o.HealthInterval = 3 * time.Second
	}
	if o.Get == nil {
		o.Get = get
	}
	return &Prober{
		o:      o,
		wake:   make(chan struct{}, 1),
		nodes:  map[target]*node{},
		health: newHealth(o),
		metrics: promauto.With(o.Metrics).NewGaugeVec(prometheus.GaugeOpts{
			Name: "sallyport_reach_nodes", Help: "Kubernetes nodes by the reach that this edge uses for their pods.",
		}, []string{"reach"}),
	}
}

func dial(ctx context.Context, addr netip.AddrPort) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr.String())
	if err == nil {
		err = c.Close()
	}
	return err
}

// PodsReachable says whether pods on the node are known to be reached directly, by IPv4.
func (p *Prober) PodsReachable(ref model.ObjectRef) bool { return p.reaches(target{ref, false}) }

// IPv6PodsReachable says whether pods on the node are known to be reached directly, by IPv6.
func (p *Prober) IPv6PodsReachable(ref model.ObjectRef) bool { return p.reaches(target{ref, true}) }

func (p *Prober) reaches(t target) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[t]
	return n != nil && n.pods
}

// NodeHealthy says whether the node is not known to have no endpoints of the Service with that healthCheckNodePort.
func (p *Prober) NodeHealthy(ref model.ObjectRef, healthCheckNodePort uint16) bool {
	return p.health.healthy(question{ref, healthCheckNodePort})
}

// Reconcile takes over the nodes and endpoints of s. What has no answer yet is probed at once by Run. It belongs after the
// reconciler that programs routes.
func (p *Prober) Reconcile(_ context.Context, s *model.Snapshot) error {
	p.health.take(s)
	if p.o.Reach == model.ReachNodes {
		return nil
	}
	found := p.probesByTarget(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	next := make(map[target]*node, len(p.nodes))
	unknown := false
	for _, sn := range s.Nodes {
		for _, t := range p.targets(sn.Ref) {
			n := p.nodes[t]
			if n == nil {
				n = &node{}
			}
			n.doubtful = n.doubtful || n.probed && found[t].own && !n.probes.own
			n.probes = found[t]
			unknown = unknown || n.isDue() && !n.probes.none()
			next[t] = n
		}
	}
	p.nodes = next
	p.count()
	if unknown {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// targets are those of a node.
func (p *Prober) targets(ref model.ObjectRef) []target {
	if !p.o.IPv6 {
		return []target{{ref, false}}
	}
	return []target{{ref, false}, {ref, true}}
}

// probesByTarget picks pods of each node, with one port of each: ready ones. Pods with the node's own address (hostNetwork)
// are left out: that a node is reached says nothing of its pods.
func (p *Prober) probesByTarget(s *model.Snapshot) map[target]probes {
	hosts, cidrs := map[netip.Addr]bool{}, map[model.ObjectRef][]netip.Prefix{}
	for _, n := range s.Nodes {
		cidrs[n.Ref] = n.PodCIDRs
		for _, ip := range n.InternalIPs {
			hosts[ip] = true
		}
	}
	out := map[target]probes{}
	for i := range s.Services {
		for _, port := range s.Services[i].Ports {
			for _, e := range port.Endpoints {
				if !e.Ready || e.Node == "" || hosts[e.Addr.Addr()] {
					continue
				}
				t := target{model.ObjectRef{Cluster: s.Services[i].Ref.Cluster, Kind: "Node", Name: e.Node}, e.Addr.Addr().Is6()}
				if t.ipv6 && !p.o.IPv6 {
					continue
				}
				own := slices.ContainsFunc(cidrs[t.node], func(c netip.Prefix) bool { return c.Contains(e.Addr.Addr()) })
				out[t] = out[t].with(e.Addr, port.Protocol, own)
			}
		}
	}
	return out
}

// with adds a pod, if it is wanted. Those of the node's podCIDRs take the place of all others: who can write an EndpointSlice
// could give the node an address that answers, and all Services' traffic to its pods would be lost on the way.
func (p probes) with(pod netip.AddrPort, protocol model.Protocol, own bool) probes {
	if own && !p.own {
		p = probes{own: true}
	}
	switch {
	case p.own && !own:
	case protocol == model.TCP && wanted(p.tcp, pod.Addr()):
		p.tcp = append(p.tcp, pod)
	case protocol == model.UDP && wanted(p.udp, pod.Addr()):
		p.udp = append(p.udp, pod)
	}
	return p
}

// wanted says whether a further pod, with this address, is to be tried.
func wanted(have []netip.AddrPort, pod netip.Addr) bool {
	return len(have) < candidates && !slices.ContainsFunc(have, func(a netip.AddrPort) bool { return a.Addr() == pod })
}

// Run probes until ctx ends: new nodes at once, every node each Interval.
func (p *Prober) Run(ctx context.Context) error {
	var health sync.WaitGroup
	health.Go(func() { p.health.run(ctx) })
	defer health.Wait()
	tick := time.NewTicker(p.o.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
			p.probe(ctx, (*node).isDue)
		case <-tick.C:
			p.probe(ctx, func(*node) bool { return true })
		}
	}
}

// probe asks all nodes that are due side by side and reports once if any answer changed.
func (p *Prober) probe(ctx context.Context, due func(*node) bool) {
	var all sync.WaitGroup
	p.mu.Lock()
	for t, n := range p.nodes {
		if due(n) && !n.probes.none() {
			probes := n.probes
			all.Go(func() { p.record(t, probes, p.reached(ctx, probes), ctx.Err() != nil) })
		}
	}
	p.mu.Unlock()
	all.Wait()
}

// reached tries the pods side by side: one that answers is enough. A pod that serves TCP and is ready takes the connection;
// a refusal comes from a firewall then, whose REJECT looks the same as a closed port. Of a pod that serves only UDP a
// refusal is the best answer there is.
func (p *Prober) reached(ctx context.Context, pods probes) bool {
	ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	endpoints, refusal := pods.tcp, error(nil)
	if len(endpoints) == 0 {
		endpoints, refusal = pods.udp, syscall.ECONNREFUSED
	}
	answers := make(chan bool, len(endpoints))
	for _, e := range endpoints {
		go func() { // ends with ctx
			err := p.o.Dial(ctx, e)
			answers <- err == nil || refusal != nil && errors.Is(err, refusal)
		}()
	}
	for range endpoints {
		if <-answers {
			return true
		}
	}
	return false
}

// record keeps one node's answer. A probe cut short by the end of Run says nothing, nor do addresses that there are better
// ones than by now.
func (p *Prober) record(t target, of probes, reached, stopped bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[t]
	if n == nil || stopped || n.probes.own && !of.own {
		return
	}
	if !n.probed || n.learn(reached) {
		n.probed, n.pods = true, reached
		p.announce(t, reached)
	}
	n.doubtful = false
}

// isDue says whether the node is to be probed at once.
func (n *node) isDue() bool { return !n.probed || n.doubtful }

// learn counts failures and says whether the answer changes.
func (n *node) learn(reached bool) bool {
	if reached {
		n.failures = 0
		return !n.pods
	}
	n.failures++
	return n.pods && (n.doubtful || n.failures >= failuresToFall)
}

func (p *Prober) announce(t target, reached bool) {
	p.count()
	log := p.o.Log.With("node", t.node.Name, "ipv6", t.ipv6)
	if reached {
		log.Info("pods of the node are reached directly", "reach", model.ReachPods)
	} else {
		log.Warn("pods of the node are not reached directly, its node ports are used", "reach", model.ReachNodes, "advice", "route the node's podCIDRs to the node, or set reach: nodes")
	}
	p.o.Changed()
}

// count brings the gauge up to date: a node counts as reached directly if it is in either family. p.mu is held.
func (p *Prober) count() {
	all, pods := map[model.ObjectRef]bool{}, map[model.ObjectRef]bool{}
	for t, n := range p.nodes {
		all[t.node] = true
		if n.pods {
			pods[t.node] = true
		}
	}
	p.metrics.WithLabelValues(string(model.ReachPods)).Set(float64(len(pods)))
	p.metrics.WithLabelValues(string(model.ReachNodes)).Set(float64(len(all) - len(pods)))
}
