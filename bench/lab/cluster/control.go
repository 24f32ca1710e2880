package cluster

import (
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// ServiceCIDR is the range of IPv4 ClusterIPs. All labs have the same: it is seen inside a lab's hosts only.
	ServiceCIDR = "10.96.0.0/16"
	// ServiceCIDR6 is the range of IPv6 ClusterIPs, which a Service gets that asks for them.
	ServiceCIDR6 = "fd5a:96::/112"
	// PodCIDR is the range of IPv4 pod IPs; each node gets a /24 of it. All labs have the same.
	PodCIDR = "10.244.0.0/16"
	// PodCIDR6 is the range of IPv6 pod IPs; each node gets a /64 of it, and each pod an address of both families.
	PodCIDR6 = "fd5a:244::/56"

	serviceCIDRs = ServiceCIDR + "," + ServiceCIDR6
	podCIDRs     = PodCIDR + "," + PodCIDR6

	kubernetesServiceIP = "10.96.0.1" // first of ServiceCIDR, by convention of the API server
	apiPort             = 6443
	etcdURL             = "http://127.0.0.1:2379"
)

// How fast the cluster notices that a node is gone, unless Options say otherwise. A real one takes 50 s and evicts pods
// after 5 minutes; the lab's tests wait for it.
const (
	nodeMonitorPeriod = time.Second
	nodeMonitorGrace  = 8 * time.Second
	evictAfter        = 20 * time.Second
)

// Users and contexts of the lab's kubeconfig.
const (
	// ContextCertificate is the kubeconfig's current context: an administrator by client certificate.
	ContextCertificate = "lab"
	// ContextToken is the context of an administrator by bearer token.
	ContextToken = "lab-token"
)

func (c *Cluster) pki(name string) string { return filepath.Join(c.dir, "pki", name) }

// writeCredentials makes the lab's keys, certificates and kubeconfig.
func (c *Cluster) writeCredentials() (err error) {
	if c.ca, err = newAuthority(); err != nil {
		return err
	}
	ca := c.ca
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}
	serverCert, serverKey, err := ca.server(names, []net.IP{
		c.network.API.AsSlice(), net.ParseIP(kubernetesServiceIP), net.IPv4(127, 0, 0, 1),
	})
	if err != nil {
		return err
	}
	adminCert, adminKey, err := ca.client("kubernetes-admin", validity, "system:masters")
	if err != nil {
		return err
	}
	kubeletClientCert, kubeletClientKey, err := ca.client("kube-apiserver-kubelet-client", validity, "system:masters")
	if err != nil {
		return err
	}
	accountKey, err := newKey()
	if err != nil {
		return err
	}
	token := rand.Text()
	caKey, err := keyPEM(ca.key)
	if err != nil {
		return err
	}
	if err := writeFiles(c.pki(""), map[string][]byte{
		"ca.crt": ca.pem, "ca.key": caKey,
		"apiserver.crt": serverCert, "apiserver.key": serverKey,
		"kubelet-client.crt": kubeletClientCert, "kubelet-client.key": kubeletClientKey,
		"service-account.key": accountKey,
		"tokens.csv":          []byte(token + `,token-admin,token-admin,"system:masters"` + "\n"),
	}); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	for _, h := range c.nodes() {
		if err := c.writeKubeletCertificate(h); err != nil {
			return err
		}
	}
	return c.writeAdminKubeconfig(adminCert, adminKey, token)
}

// writeKubeletCertificate makes the certificate with which h's agent serves the kubelet's API.
func (c *Cluster) writeKubeletCertificate(h *Host) error {
	cert, key, err := c.ca.server([]string{h.Name}, []net.IP{h.Addr.AsSlice()})
	if err != nil {
		return err
	}
	err = writeFiles(c.pki(""), map[string][]byte{"kubelet-" + h.Name + ".crt": cert, "kubelet-" + h.Name + ".key": key})
	if err != nil {
		return fmt.Errorf("write certificate of %s: %w", h.Name, err)
	}
	return nil
}

// WriteKubeconfig writes the kubeconfig of a user with a client certificate that is good for so long, and has the rights
// that RBAC gives the user and the groups. The API server looks at the time with every request.
func (c *Cluster) WriteKubeconfig(path, user string, validFor time.Duration, groups ...string) error {
	cert, key, err := c.ca.client(user, validFor, groups...)
	if err != nil {
		return err
	}
	config := c.kubeconfig(user, &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return nil
}

// kubeconfig returns a configuration with one user, in a context of the same name.
func (c *Cluster) kubeconfig(user string, auth *clientcmdapi.AuthInfo) *clientcmdapi.Config {
	config := clientcmdapi.NewConfig()
	config.Clusters["lab"] = &clientcmdapi.Cluster{
		Server:                   fmt.Sprintf("https://%v:%d", c.network.API, apiPort),
		CertificateAuthorityData: c.ca.pem,
	}
	config.AuthInfos[user] = auth
	config.Contexts[user] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: user}
	config.CurrentContext = user
	return config
}

func (c *Cluster) writeAdminKubeconfig(cert, key []byte, token string) error {
	config := c.kubeconfig(ContextCertificate, &clientcmdapi.AuthInfo{ClientCertificateData: cert, ClientKeyData: key})
	config.AuthInfos[ContextToken] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts[ContextToken] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: ContextToken}
	if err := clientcmd.WriteToFile(*config, c.Kubeconfig()); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

// etcdArgs trade durability, which a lab does not need, for speed.
func (c *Cluster) etcdArgs() []string {
	return []string{
		"--data-dir=" + filepath.Join(c.dir, "etcd"),
		"--unsafe-no-fsync",
		"--listen-client-urls=" + etcdURL,
		"--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--log-level=warn",
	}
}

func (c *Cluster) apiServerArgs() []string {
	return []string{
		"--etcd-servers=" + etcdURL,
		"--advertise-address=" + c.network.API.String(),
		fmt.Sprintf("--secure-port=%d", apiPort),
		"--authorization-mode=RBAC,Node",
		"--service-cluster-ip-range=" + serviceCIDRs,
		"--client-ca-file=" + c.pki("ca.crt"),
		"--tls-cert-file=" + c.pki("apiserver.crt"),
		"--tls-private-key-file=" + c.pki("apiserver.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"),
		"--kubelet-client-certificate=" + c.pki("kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--token-auth-file=" + c.pki("tokens.csv"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.pki("service-account.key"),
		"--service-account-signing-key-file=" + c.pki("service-account.key"),
		"--allow-privileged",
		fmt.Sprintf("--default-not-ready-toleration-seconds=%.0f", c.evictAfter.Seconds()),
		fmt.Sprintf("--default-unreachable-toleration-seconds=%.0f", c.evictAfter.Seconds()),
		"--profiling=false",
	}
}

func (c *Cluster) controllerManagerArgs() []string {
	return []string{
		"--kubeconfig=" + c.Kubeconfig(),
		"--leader-elect=false",
		"--allocate-node-cidrs",
		"--cluster-cidr=" + podCIDRs,
		"--service-cluster-ip-range=" + serviceCIDRs,
		"--service-account-private-key-file=" + c.pki("service-account.key"),
		"--root-ca-file=" + c.pki("ca.crt"),
		"--cluster-signing-cert-file=" + c.pki("ca.crt"),
		"--cluster-signing-key-file=" + c.pki("ca.key"),
		"--node-monitor-period=" + nodeMonitorPeriod.String(),
		"--node-monitor-grace-period=" + c.nodeMonitorGrace.String(),
		"--kube-api-qps=500", "--kube-api-burst=1000",
		"--profiling=false",
	}
}

func (c *Cluster) schedulerArgs() []string {
	return []string{
		"--kubeconfig=" + c.Kubeconfig(),
		"--leader-elect=false",
		"--kube-api-qps=500", "--kube-api-burst=1000",
		"--profiling=false",
	}
}

// kubeProxyArgs leave conntrack's sizes alone: they are read-only inside a network namespace.
func (c *Cluster) kubeProxyArgs(node string) []string {
	return []string{
		"--kubeconfig=" + c.Kubeconfig(),
		"--hostname-override=" + node,
		"--proxy-mode=iptables",
		"--cluster-cidr=" + podCIDRs,
		"--iptables-min-sync-period=100ms",
		"--conntrack-max-per-core=0",
		"--conntrack-tcp-timeout-established=0",
		"--conntrack-tcp-timeout-close-wait=0",
		"--healthz-bind-address=127.0.0.1:10256",
		"--metrics-bind-address=127.0.0.1:10249",
		"--profiling=false",
	}
}
