// Package config is sallyport.yaml: its keys, their defaults, and what is wrong with a file, by line and key.
//
// The file has two parts: edge, which describes this machine, and the rest, which is identical on all edges.
// A Config returned without error is valid: addresses parse, pools do not overlap, ports are in range.
package config

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"sallyport/lb"
	"sallyport/watcher/model"
	"sallyport/watcher/objects"
)

// DefaultFile is read when no --config is given, if it exists.
const DefaultFile = "/etc/sallyport/sallyport.yaml"

// DefaultSocket is where commands look for a running edge.
const DefaultSocket = "/run/sallyport/admin.sock"

// A Config is the content of sallyport.yaml with every default filled in.
type Config struct {
	Edge         Edge         `yaml:"edge"`
	Clusters     []Cluster    `yaml:"clusters"`
	Reach        model.Reach  `yaml:"reach"`
	LoadBalancer LoadBalancer `yaml:"loadBalancer"`
	Groups       []Group      `yaml:"groups"`
	L4           L4           `yaml:"l4"`
	L7           L7           `yaml:"l7"`
	Status       Status       `yaml:"status"`

	// Manifests is a folder of manifests to read instead of clusters. It is a flag (--manifests) only.
	Manifests string `yaml:"-"`
	// Pools are LoadBalancer.IPAddressPools, parsed.
	Pools []lb.Pool `yaml:"-"`
}

// Edge is the part of the configuration that describes this machine.
type Edge struct {
	Name     string `yaml:"name"`
	Zone     string `yaml:"zone"` // topology.kubernetes.io/zone of the edge, for topology hints
	Admin    Admin  `yaml:"admin"`
	Log      Log    `yaml:"log"`
	StateDir string `yaml:"stateDir"` // of the last-good files
}

// Admin is where the views of a running edge are served.
type Admin struct {
	Address netip.AddrPort `yaml:"address"` // of /healthz, /readyz and /metrics
	Socket  string         `yaml:"socket"`  // a unix socket, for "sallyport status" and "explain"; empty: none
}

// Log says how the process logs to standard error.
type Log struct {
	Format string `yaml:"format"` // text or json
	Level  string `yaml:"level"`  // debug, info, warn or error
}

// A Cluster is one Kubernetes cluster to serve. An empty Kubeconfig means: as kubectl would find it.
type Cluster struct {
	Name       string `yaml:"name"`
	Kubeconfig string `yaml:"kubeconfig"`
	Context    string `yaml:"context"`
	Secrets    string `yaml:"secrets"` // which Secrets may be read: none, named, namespaces or cluster; empty is named
}

// Access is Secrets with its default.
func (c Cluster) Access() string { return cmp.Or(c.Secrets, SecretsNamed) }

// LoadBalancer has MetalLB's key names.
type LoadBalancer struct {
	IPAddressPools []IPAddressPool `yaml:"ipAddressPools"`
}

// An IPAddressPool is a named set of addresses that LoadBalancer Services may ask for.
type IPAddressPool struct {
	Name      string   `yaml:"name"`
	Addresses []string `yaml:"addresses"` // CIDRs and "first-last" ranges
}

// A Group is what moves together from edge to edge: VIPs, which are spread over the groups, and addresses on the nodes' leg.
type Group struct {
	Name string `yaml:"name"`
	// SNATAddresses are the source addresses of connections to the group's VIPs: a CIDR or "first-last" range a family.
	SNATAddresses []string `yaml:"snatAddresses"`
	// NodesGateway are the addresses that nodes route clients through, one a family.
	NodesGateway []netip.Addr `yaml:"nodesGateway"`

	// SNAT is SNATAddresses, parsed.
	SNAT []lb.Range `yaml:"-"`
}

// L4 is how connections to NodePorts and VIPs are forwarded.
type L4 struct {
	Dataplane               string         `yaml:"dataplane"`               // iptables, nftables or userspace
	IptablesBackend         string         `yaml:"iptablesBackend"`         // auto, nft or legacy
	NodePortAddresses       []netip.Prefix `yaml:"nodePortAddresses"`       // empty: the primary address of each family
	ExternalIPs             []netip.Prefix `yaml:"externalIPs"`             // where spec.externalIPs are served; empty: nowhere
	ClusterIPs              bool           `yaml:"clusterIPs"`              // serve them, for machines that route them here
	SourceRangesOnNodePorts bool           `yaml:"sourceRangesOnNodePorts"` // loadBalancerSourceRanges hold for NodePorts, too
	SNAT                    string         `yaml:"snat"`                    // auto, always or never
	ReturnPath              string         `yaml:"returnPath"`              // direct or edge
	HashSeed                uint32         `yaml:"hashSeed"`
	ConntrackMax            uint32         `yaml:"conntrackMax"` // connections that the kernel keeps track of; 0: by memory
}

// L7 is how HTTP is served.
type L7 struct {
	Enabled               bool           `yaml:"enabled"`
	Addresses             []string       `yaml:"addresses"` // IP addresses, or "edge" for all of this machine
	HTTPPort              uint16         `yaml:"httpPort"`
	HTTPSPort             uint16         `yaml:"httpsPort"` // 0: no TLS
	TLS                   TLS            `yaml:"tls"`
	TrustedProxies        []netip.Prefix `yaml:"trustedProxies"`
	MaxRequestHeaderBytes int            `yaml:"maxRequestHeaderBytes"`
	RequestHeaderTimeout  time.Duration  `yaml:"requestHeaderTimeout"`
	IdleTimeout           time.Duration  `yaml:"idleTimeout"`
	ConnectTimeout        time.Duration  `yaml:"connectTimeout"`
	ResponseHeaderTimeout time.Duration  `yaml:"responseHeaderTimeout"`
	UpgradeIdleTimeout    time.Duration  `yaml:"upgradeIdleTimeout"`
	DrainTime             time.Duration  `yaml:"drainTime"`
}

// TLS is how HTTPS is served.
type TLS struct {
	DefaultCertificate string `yaml:"defaultCertificate"` // namespace/name of a Secret
	Redirect           bool   `yaml:"redirect"`           // from HTTP, for hosts with TLS
	MinVersion         string `yaml:"minVersion"`         // 1.2 or 1.3
}

// Status is what is written back to the cluster.
type Status struct {
	Enabled        bool   `yaml:"enabled"`
	LeaseNamespace string `yaml:"leaseNamespace"` // where the Lease is that says which edge writes
	// IngressAddresses go into the status of Ingresses. Empty: L7.Addresses, with the machine's primary one for "edge".
	IngressAddresses []netip.Addr `yaml:"ingressAddresses"`
}

// The values of Cluster.Secrets.
const (
	SecretsNone       = "none"
	SecretsNamed      = "named"      // each by its name, those that Ingresses name
	SecretsNamespaces = "namespaces" // all TLS Secrets of the namespaces that those are in
	SecretsCluster    = "cluster"    // all TLS Secrets
)

// The values of Config.L4.Dataplane.
const (
	DataplaneIptables  = "iptables"
	DataplaneNFTables  = "nftables"
	DataplaneUserspace = "userspace"
)

// The values of Config.L4.SNAT and Config.L4.ReturnPath.
const (
	SNATAuto     = "auto"
	SNATAlways   = "always"
	SNATNever    = "never"
	ReturnDirect = "direct" // nodes answer clients by routes of their own
	ReturnEdge   = "edge"   // nodes route clients through Group.NodesGateway
)

// EdgeAddresses is the value in L7.Addresses that means every address of this machine.
const EdgeAddresses = "edge"

// Default returns the configuration of an empty file.
func Default() Config {
	name, err := os.Hostname()
	if err != nil {
		name = "edge"
	}
	return Config{
		Edge: Edge{
			Name:     name,
			Admin:    Admin{Address: netip.MustParseAddrPort("127.0.0.1:9440"), Socket: DefaultSocket},
			Log:      Log{Format: "text", Level: "info"},
			StateDir: "/var/lib/sallyport",
		},
		Reach: model.ReachAuto,
		L4:    L4{Dataplane: DataplaneIptables, IptablesBackend: "auto", SNAT: SNATAuto, ReturnPath: ReturnDirect},
		L7: L7{
			Enabled:               true,
			Addresses:             []string{EdgeAddresses},
			HTTPPort:              80,
			HTTPSPort:             443,
			TLS:                   TLS{Redirect: true, MinVersion: "1.2"},
			MaxRequestHeaderBytes: 16 << 10,
			RequestHeaderTimeout:  10 * time.Second,
			IdleTimeout:           60 * time.Second,
			ConnectTimeout:        5 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second,
			UpgradeIdleTimeout:    time.Hour,
			DrainTime:             10 * time.Second,
		},
		Status: Status{Enabled: true, LeaseNamespace: "sallyport"},
	}
}

// Load reads the file, or DefaultFile if file is empty and that one exists, or else gives Default. The error has one line
// for each thing that is wrong.
func Load(file string) (Config, error) {
	optional := file == ""
	if optional {
		file = DefaultFile
	}
	data, err := os.ReadFile(file)
	if optional && os.IsNotExist(err) {
		return Parse("", nil)
	}
	if err != nil {
		return Config{}, fmt.Errorf("reading the configuration: %w", err)
	}
	return Parse(file, data)
}

// KeepsSource says whether endpoints see the addresses of clients.
func (c L4) KeepsSource() bool {
	return c.Dataplane != DataplaneUserspace && (c.SNAT == SNATNever || c.SNAT == SNATAuto && c.ReturnPath == ReturnEdge)
}

// HTTPAddresses are the host:port pairs that HTTP is served on.
func (c L7) HTTPAddresses() []string { return c.listen(c.HTTPPort) }

// HTTPSAddresses are the host:port pairs that HTTPS is served on; none without TLS.
func (c L7) HTTPSAddresses() []string {
	if c.HTTPSPort == 0 {
		return nil
	}
	return c.listen(c.HTTPSPort)
}

func (c L7) listen(port uint16) []string {
	var out []string
	for _, a := range c.Addresses {
		host := a
		if a == EdgeAddresses {
			host = ""
		}
		out = append(out, hostPort(host, port))
	}
	return out
}

// DefaultCertificateName is the Secret of TLS.DefaultCertificate; the zero Name if there is none.
func (c L7) DefaultCertificateName() objects.Name {
	namespace, name, _ := strings.Cut(c.TLS.DefaultCertificate, "/")
	return objects.Name{Namespace: namespace, Name: name}
}

// MinTLSVersion is TLS.MinVersion as crypto/tls has it.
func (c L7) MinTLSVersion() uint16 { return tlsVersions[c.TLS.MinVersion] }

var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}
