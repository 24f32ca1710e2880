package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"sallyport/bench/lab/build"
	"sallyport/bench/lab/network"
)

// connect makes the clients; the API server need not be there yet.
func (c *Cluster) connect() (err error) {
	c.config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", c.Kubeconfig(), err)
	}
	c.config.QPS = -1 // no limit
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	c.dynamic, err = dynamic.NewForConfig(c.config)
	return err
}

// startControl starts the control plane and, meanwhile, builds the lab's own program if it has to.
func (c *Cluster) startControl(ctx context.Context) error {
	if err := c.run("etcd", "control", "etcd", c.etcdArgs()); err != nil {
		return err
	}
	if err := c.run("kube-apiserver", "control", "kube-apiserver", c.apiServerArgs()); err != nil {
		return err
	}
	err := inParallel(
		func() error { return within(ctx, startWithin, c.WaitAPI) },
		func() error { return c.ensureProgram(ctx) },
	)
	if err != nil {
		return err
	}
	c.log.InfoContext(ctx, "control plane is ready")
	if err := c.run("kube-controller-manager", "control", "kube-controller-manager", c.controllerManagerArgs()); err != nil {
		return err
	}
	return c.run("kube-scheduler", "control", "kube-scheduler", c.schedulerArgs())
}

// WaitAPI returns when the API server says that it is ready.
func (c *Cluster) WaitAPI(ctx context.Context) error {
	err := poll(ctx, func() error {
		return c.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
	if err != nil {
		return fmt.Errorf("wait for the API server: %w", err)
	}
	return nil
}

// ensureProgram builds the lab's own program if it was not given, and gives it the names of the images that it plays.
func (c *Cluster) ensureProgram(ctx context.Context) error {
	if c.lab == "" {
		c.lab = filepath.Join(c.dir, "lab")
		if err := build.Command(ctx, build.LabCommand, c.lab); err != nil {
			return err
		}
	}
	folder := filepath.Join(c.dir, "images")
	if err := os.Mkdir(folder, 0o755); err != nil {
		return err
	}
	for _, name := range OwnImages() {
		if c.images[name] != "" { // Options has another
			continue
		}
		c.images[name] = filepath.Join(folder, name)
		if err := os.Symlink(c.lab, c.images[name]); err != nil {
			return err
		}
	}
	return nil
}

// OwnImages lists the images that the lab's own program plays when it is run under their name.
func OwnImages() []string { return []string{"badhttp", "sctp", "websocket"} }

// startNodes starts an agent and a kube-proxy for each node and waits until pods can run and be reached.
func (c *Cluster) startNodes(ctx context.Context) error {
	var waits []func() error
	for _, h := range c.nodes() {
		if err := c.startAgent(h); err != nil {
			return err
		}
		if err := c.run("kube-proxy@"+h.Name, h.Name, "kube-proxy", c.kubeProxyArgs(h.Name)); err != nil {
			return err
		}
		waits = append(waits, func() error { return c.waitNode(ctx, h) }, func() error { return c.waitKubeProxy(ctx, h) })
	}
	waits = append(waits, func() error { return c.waitServiceAccount(ctx, metav1.NamespaceDefault) })
	return inParallel(waits...)
}

// nodes returns the hosts that are nodes.
func (c *Cluster) nodes() []*Host {
	return slices.DeleteFunc(slices.Clone(c.network.Hosts), func(h *Host) bool { return !strings.HasPrefix(h.Name, "node-") })
}

// startAgent starts h's agent, in the root namespaces: it makes those of the pods.
func (c *Cluster) startAgent(h *Host) error {
	args := []string{
		"agent", "--node=" + h.Name, "--node-ip=" + h.Addr.String() + "," + h.Addr6.String(), "--netns=" + h.NetNS(),
		"--pod-netns-prefix=" + network.Prefix(c.name) + "pod.",
		"--kubeconfig=" + c.Kubeconfig(), "--dir=" + agentFolder(c.name, h.Name),
		"--tls-cert-file=" + c.pki("kubelet-"+h.Name+".crt"), "--tls-private-key-file=" + c.pki("kubelet-"+h.Name+".key"),
		"--client-ca-file=" + c.pki("ca.crt"),
	}
	for name, path := range c.images {
		args = append(args, "--image="+name+"="+path)
	}
	return c.supervise("agent@"+h.Name, func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, c.lab, args...)
		cmd.Env = append(os.Environ(), network.LabVariable+"="+c.name)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return cmd
	})
}

// waitNode waits until the node is Ready and routes its pods.
func (c *Cluster) waitNode(ctx context.Context, h *Host) error {
	var node *corev1.Node
	err := poll(ctx, func() (err error) {
		node, err = c.client.CoreV1().Nodes().Get(ctx, h.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(node.Spec.PodCIDRs) == 0 || !nodeReady(node) {
			return fmt.Errorf("node %s has spec.podCIDRs %v and conditions %v", h.Name, node.Spec.PodCIDRs, node.Status.Conditions)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for node %s: %w", h.Name, err)
	}
	for _, text := range node.Spec.PodCIDRs {
		cidr, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("node %s: spec.podCIDRs: %w", h.Name, err)
		}
		if err := c.network.RoutePods(h.Name, cidr); err != nil {
			return err
		}
	}
	c.log.InfoContext(ctx, "node is ready", "node", h.Name, "podCIDRs", node.Spec.PodCIDRs)
	return nil
}

func nodeReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waitKubeProxy waits until h's kube-proxy has synced: its healthz then says 200.
func (c *Cluster) waitKubeProxy(ctx context.Context, h *Host) error {
	client := h.HTTPClient()
	err := poll(ctx, func() error {
		response, err := client.Get("http://127.0.0.1:10256/healthz")
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New("its healthz says " + response.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for kube-proxy of %s: %w", h.Name, err)
	}
	return nil
}

// waitServiceAccount waits for the account without which the API server admits no pod to the namespace.
func (c *Cluster) waitServiceAccount(ctx context.Context, namespace string) error {
	err := poll(ctx, func() error {
		_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the service account of namespace %s: %w", namespace, err)
	}
	return nil
}
