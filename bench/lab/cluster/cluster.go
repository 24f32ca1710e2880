// Package cluster brings up a real Kubernetes cluster without containers, for tests and for trying things out.
//
// etcd, the API server, the controller manager and the scheduler run on the host control of package network, a
// kube-proxy and a node agent (package agent) for each node. A lab is all of that under one name. Everything of it
// carries that name, so that Down removes it to the last process, namespace, link and file, also after a crash.
//
// Tests use it through [Shared]: one cluster for a test binary, a namespace for each test.
package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"sallyport/bench/lab/build"
	"sallyport/bench/lab/network"
)

// startWithin bounds the start of the control plane, and then that of the nodes. Both take 5 s on two idle cores.
const startWithin = 90 * time.Second

// A Host is one of the lab's machines.
type Host = network.Host

// Options say what cluster to start.
type Options struct {
	// Name of the lab; two labs of one name cannot be up at once.
	Name string
	// Nodes and Edges are how many of each; at least one node.
	Nodes, Edges int
	// Images adds to the image table: bare image name -> path of the program that plays it.
	Images map[string]string
	// NodeMonitorGrace is how long a node may be silent before it counts as gone (kube-controller-manager
	// --node-monitor-grace-period); 0 for 8 s. The agents' heartbeats come every 2 s.
	NodeMonitorGrace time.Duration
	// EvictAfter is how long pods stay bound to a node that is gone; 0 for 20 s. It is a whole number of seconds.
	EvictAfter time.Duration
	// Program is the lab's own program, which has the agent; built if empty.
	Program string
	// Log takes progress; nil for none.
	Log *slog.Logger
}

// A Cluster is a running lab.
type Cluster struct {
	name     string
	dir      string
	lab      string // path of the lab's own program
	log      *slog.Logger
	claim    *claim
	network  *network.Network
	programs build.Programs
	images   map[string]string
	running  map[string]*program
	ca       *authority

	nodeMonitorGrace, evictAfter time.Duration

	config  *rest.Config
	client  *kubernetes.Clientset
	dynamic *dynamic.DynamicClient
	mapper  meta.RESTMapper

	alive context.Context // ends with the first failure of a program
	fail  context.CancelCauseFunc
}

// Start brings a lab up: it returns when the API server answers, all nodes are Ready and their kube-proxies have
// programmed their rules. ctx bounds the start only. What a crashed lab of the same name left is removed first; on
// error nothing is left.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	if err := errors.Join(network.CheckName(o.Name), network.Requirements(), checkImages(o.Images)); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	programs, err := build.All(ctx, o.Log)
	if err != nil {
		return nil, err
	}
	claim, err := claimLab(o.Name)
	if err != nil {
		return nil, err
	}
	if err := sweep(o.Name); err != nil {
		return nil, errors.Join(fmt.Errorf("remove what is left of an earlier lab %s: %w", o.Name, err), claim.release())
	}
	c := &Cluster{
		name: o.Name, dir: folder(o.Name), lab: o.Program, log: o.Log.With("lab", o.Name),
		claim: claim, programs: programs, images: programs.Images(), running: map[string]*program{},
		nodeMonitorGrace: cmp.Or(o.NodeMonitorGrace, nodeMonitorGrace), evictAfter: cmp.Or(o.EvictAfter, evictAfter),
	}
	maps.Copy(c.images, o.Images)
	c.alive, c.fail = context.WithCancelCause(context.Background())
	if err := c.start(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("start lab %s: %w", o.Name, err), c.Stop())
	}
	claim.requests.serve(c.serveRequest)
	return c, nil
}

// checkImages refuses a table that names no program.
func checkImages(images map[string]string) error {
	var errs []error
	for name, path := range images {
		info, err := os.Stat(path)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("image %s: %w", name, err))
		case !filepath.IsAbs(path) || info.IsDir() || info.Mode()&0o111 == 0:
			errs = append(errs, fmt.Errorf("image %s: %s: want the absolute path of a program", name, path))
		}
	}
	return errors.Join(errs...)
}

// start does the work of Start; what it began when it fails is Stop's to remove.
func (c *Cluster) start(ctx context.Context, o Options) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.alive, func() { cancel(context.Cause(c.alive)) })() // a dead program ends all waiting

	if err := makeFolder(c.dir); err != nil {
		return err
	}
	c.network, err = network.Create(network.Options{Lab: c.name, Nodes: o.Nodes, Edges: o.Edges, Dir: c.dir})
	if err != nil {
		return err
	}
	if err := c.writeCredentials(); err != nil {
		return err
	}
	if err := c.describe(); err != nil {
		return err
	}
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.startControl(ctx); err != nil {
		return err
	}
	return within(ctx, startWithin, c.startNodes)
}

// describe saves the lab's state and gives its hosts the environment of an administrator's shell.
func (c *Cluster) describe() error {
	bin := filepath.Dir(c.programs["kubectl"])
	for _, h := range c.network.Hosts {
		h.Env = []string{"KUBECONFIG=" + c.Kubeconfig(), "PATH=" + bin + ":" + os.Getenv("PATH")}
	}
	return c.State().save()
}

// State returns what other processes can know of c.
func (c *Cluster) State() *State {
	return &State{Name: c.name, Hosts: c.network.Hosts, Kubeconfig: c.Kubeconfig(), Owner: os.Getpid()}
}

// run starts a program of the cache on a host.
func (c *Cluster) run(name, host, binary string, args []string) error {
	return c.supervise(name, func(ctx context.Context) *exec.Cmd {
		return c.Host(host).Command(ctx, c.programs[binary], args...)
	})
}

// supervise starts a program whose end, if it was not asked for, is the lab's failure.
func (c *Cluster) supervise(name string, command func(context.Context) *exec.Cmd) error {
	p := &program{name: name, command: command, log: c.LogFile(name), failed: func(name, tail string, err error) {
		c.log.Error("program ended by itself", "program", name, "err", err)
		c.fail(fmt.Errorf("%s ended by itself: %w; its last words:\n%s", name, err, tail))
	}}
	c.running[name] = p
	return p.start()
}

// Stop removes the lab: processes, namespaces, links and files.
func (c *Cluster) Stop() error {
	c.claim.requests.close()
	for _, p := range c.running {
		p.expectEnd()
	}
	err := sweep(c.name)
	for _, p := range c.running {
		err = errors.Join(err, p.stop())
	}
	return errors.Join(err, c.claim.release())
}

// Failed is closed when one of the lab's programs ended without having been asked to; Err then says which.
func (c *Cluster) Failed() <-chan struct{} { return c.alive.Done() }

// Err is nil until Failed is closed.
func (c *Cluster) Err() error { return context.Cause(c.alive) }

// Programs lists the names by which StopProgram and StartProgram know the lab's programs: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, and kube-proxy@NODE and agent@NODE for each node.
func (c *Cluster) Programs() []string { return slices.Sorted(maps.Keys(c.running)) }

// StopProgram kills one of the lab's programs, as a crash of its machine would.
func (c *Cluster) StopProgram(name string) error {
	p, ok := c.running[name]
	if !ok {
		return fmt.Errorf("stop program %q: the lab runs %v", name, c.Programs())
	}
	return p.stop()
}

// StartProgram starts a program that StopProgram stopped. It does not wait until the program is ready.
func (c *Cluster) StartProgram(name string) error {
	p, ok := c.running[name]
	if !ok {
		return fmt.Errorf("start program %q: the lab runs %v", name, c.Programs())
	}
	return p.start()
}

// LogFile is the path of the output of one of Programs.
func (c *Cluster) LogFile(program string) string {
	return filepath.Join(c.dir, "log", program+".log")
}

// Name returns the lab's name.
func (c *Cluster) Name() string { return c.name }

// Dir is the lab's folder, removed with it. Tests may put files there that programs on hosts shall see.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is the path of an administrator's kubeconfig, with the contexts ContextCertificate and ContextToken. It
// works in the root namespace and on every host.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// RESTConfig returns an administrator's client configuration without rate limit.
func (c *Cluster) RESTConfig() *rest.Config { return rest.CopyConfig(c.config) }

// Client returns an administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Host returns the machine of that name: client, router, control, edge-1 and so on, node-1 and so on. It panics if
// there is none: the test that asks was written for another lab.
func (c *Cluster) Host(name string) *Host {
	if h := c.network.Host(name); h != nil {
		return h
	}
	panic(fmt.Sprintf("BUG: lab %s has no host %q", c.name, name))
}

// Hosts returns all machines: client, router, control, the edges, the nodes.
func (c *Cluster) Hosts() []*Host { return c.network.Hosts }

// Pool returns the IPv4 addresses of the clients' network that are free for VIPs.
func (c *Cluster) Pool() netip.Prefix { return c.network.Pool }

// Pool6 returns the IPv6 addresses of the clients' network that are free for VIPs.
func (c *Cluster) Pool6() netip.Prefix { return c.network.Pool6 }

// inParallel runs all functions and returns the first error.
func inParallel(functions ...func() error) error {
	var group errgroup.Group
	for _, f := range functions {
		group.Go(f)
	}
	return group.Wait()
}
