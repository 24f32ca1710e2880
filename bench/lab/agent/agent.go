// Package agent plays kubelet in the lab: it registers a Node and runs the pods bound to it as processes of this
// machine, each pod in a network namespace of its own, each container in PID, mount and UTS namespaces.
//
// An image is a program of the machine (Config.Images). What a pod asks for and the agent does not do is said in the
// pod's status and an Event; nothing is silently left out. All that runs ends with the agent.
package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
)

// Config says which node the agent plays, and with what.
type Config struct {
	// Node is the name of the Node object.
	Node string
	// NodeIPs are its InternalIPs, at most one of each family, the primary one first. There is one at least.
	NodeIPs []netip.Addr
	// NetNS names the node's network namespace, as ip-netns(8) does. It must exist, and forward packets.
	NetNS string
	// PodNetNSPrefix and the first eight characters of a pod's UID name the pod's network namespace.
	PodNetNSPrefix string
	// Kubeconfig is the path of a kubeconfig with a kubelet's permissions. The API server must be reachable from NetNS:
	// a node whose cable is cut has lost it.
	Kubeconfig string
	// Kubelet is how the kubelet's API is served at the first of NodeIPs (see [KubeletTLS]); nil for not at all.
	Kubelet *tls.Config
	// Dir is a directory of this node alone. Dir/pods/NAMESPACE_NAME_UID/CONTAINER.log takes a container's output; volumes
	// are beside it. [RemoveDir] removes what an agent that was killed left there.
	Dir string
	// Images maps the bare name of an image (see [ImageName]) to the path of its program.
	Images map[string]string
	// Log takes what concerns the node; what concerns a pod becomes an Event.
	Log *slog.Logger
}

// Run registers the node and runs its pods until ctx ends. Then it kills them, removes their namespaces, and returns
// nil. Any other end is an error. It needs root, and a main program that calls [PodInit].
func Run(ctx context.Context, c Config) error {
	node, err := netns.GetFromName(c.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace %s of the node: %w", c.NetNS, err)
	}
	defer node.Close()
	client, err := newClient(c.Kubeconfig, node)
	if err != nil {
		return err
	}
	return run(ctx, c, client)
}

// newClient returns a client whose connections start in the node's namespace.
func newClient(kubeconfig string, node netns.NsHandle) (kubernetes.Interface, error) {
	rest, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", kubeconfig, err)
	}
	rest.QPS = -1 // no limit: a test that scales a Deployment waits for each status
	rest.Dial = dialerIn(node)
	rest.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, fmt.Errorf("make client from kubeconfig %s: %w", kubeconfig, err)
	}
	return client, nil
}

func run(ctx context.Context, c Config, client kubernetes.Interface) error {
	if err := removeOrphans(c.Dir, c.PodNetNSPrefix); err != nil {
		return err
	}
	keeper := &nodeKeeper{client: client, name: c.Node, ips: c.NodeIPs, log: c.Log}
	cidrs, err := keeper.awaitPodCIDRs(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	network, err := newPodNetwork(c.NetNS, c.PodNetNSPrefix, cidrs)
	if err != nil {
		return err
	}
	defer network.close()
	keeper.ready.Store(true)
	c.Log.Info("node is ready", "node", c.Node, "podCIDRs", cidrs)
	ctx, cancel := context.WithCancel(ctx)
	var heartbeats sync.WaitGroup
	heartbeats.Go(func() { keeper.run(ctx) })
	defer heartbeats.Wait()
	defer cancel()
	return runOn(ctx, c, client, network)
}

// runOn runs the pods with what needs to be stopped after them.
func runOn(ctx context.Context, c Config, client kubernetes.Interface, network *podNetwork) error {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	launcher := newLauncher()
	defer launcher.stop()
	pods := newManager(ctx, &podRuntime{
		client:   client,
		recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: c.Node}),
		network:  network,
		launcher: launcher,
		prober:   newProber(network.node),
		images:   c.Images,
		config:   c,
	})
	if c.Kubelet != nil {
		server, err := serveKubelet(ctx, network.node, c.NodeIPs[0], c.Kubelet, pods, c.Log)
		if err != nil {
			return err
		}
		defer server.stop()
	}
	return pods.run()
}
