// Package config is sallyport.yaml: its keys, their defaults, and what is wrong with a file, by line and key.
//
// The file has two parts: edge, which describes this machine, and the rest, which is identical on all edges.
// A Config returned without error is valid: addresses parse, pools do not overlap, ports are in range.
package config

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"sallyport/lb"
	"sallyport/watcher/model"
)

// DefaultFile is read when no --config is given, if it exists.
const DefaultFile = "/etc/sallyport/sallyport.yaml"

// A Config is the content of sallyport.yaml with every default filled in.
type Config struct {
	Edge         Edge         `yaml:"edge"`
	Clusters     []Cluster    `yaml:"clusters"`
	Reach        model.Reach  `yaml:"reach"`
	LoadBalancer LoadBalancer `yaml:"loadBalancer"`
	L4           L4           `yaml:"l4"`
	L7           L7           `yaml:"l7"`

	// Manifests is a folder of manifests to read instead of clusters. It is a flag (--manifests) only.
	Manifests string `yaml:"-"`
	// Pools are LoadBalancer.IPAddressPools, parsed.
	Pools []lb.Pool `yaml:"-"`
}

// Edge is the part of the configuration that describes this machine.
type Edge struct {
	Name  string `yaml:"name"`
	Admin Admin  `yaml:"admin"`
	Log   Log    `yaml:"log"`
}

// Admin is where /healthz, /readyz and /metrics are served.
type Admin struct {
	Address netip.AddrPort `yaml:"address"`
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
}

// LoadBalancer has MetalLB's key names.
type LoadBalancer struct {
	IPAddressPools []IPAddressPool `yaml:"ipAddressPools"`
}

// An IPAddressPool is a named set of addresses that LoadBalancer Services may ask for.
type IPAddressPool struct {
	Name      string   `yaml:"name"`
	Addresses []string `yaml:"addresses"` // CIDRs and "first-last" ranges
}

// L4 is how connections to NodePorts and VIPs are forwarded.
type L4 struct {
	Dataplane         string         `yaml:"dataplane"`         // iptables or userspace
	IptablesBackend   string         `yaml:"iptablesBackend"`   // auto, nft or legacy
	NodePortAddresses []netip.Prefix `yaml:"nodePortAddresses"` // empty: every address of the edge
	SNAT              string         `yaml:"snat"`              // always
	HashSeed          uint32         `yaml:"hashSeed"`
}

// L7 is how HTTP is served.
type L7 struct {
	Enabled               bool           `yaml:"enabled"`
	Addresses             []string       `yaml:"addresses"` // IP addresses, or "edge" for all of this machine
	HTTPPort              uint16         `yaml:"httpPort"`
	TrustedProxies        []netip.Prefix `yaml:"trustedProxies"`
	MaxRequestHeaderBytes int            `yaml:"maxRequestHeaderBytes"`
	RequestHeaderTimeout  time.Duration  `yaml:"requestHeaderTimeout"`
	IdleTimeout           time.Duration  `yaml:"idleTimeout"`
	ConnectTimeout        time.Duration  `yaml:"connectTimeout"`
	ResponseHeaderTimeout time.Duration  `yaml:"responseHeaderTimeout"`
	DrainTime             time.Duration  `yaml:"drainTime"`
}

// The values of Config.L4.Dataplane.
const (
	DataplaneIptables  = "iptables"
	DataplaneUserspace = "userspace"
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
			Name:  name,
			Admin: Admin{Address: netip.MustParseAddrPort("127.0.0.1:9440")},
			Log:   Log{Format: "text", Level: "info"},
		},
		Reach: model.ReachAuto,
		L4:    L4{Dataplane: DataplaneIptables, IptablesBackend: "auto", SNAT: "always"},
		L7: L7{
			Enabled:               true,
			Addresses:             []string{EdgeAddresses},
			HTTPPort:              80,
			MaxRequestHeaderBytes: 16 << 10,
			RequestHeaderTimeout:  10 * time.Second,
			IdleTimeout:           60 * time.Second,
			ConnectTimeout:        5 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second,
			DrainTime:             10 * time.Second,
		},
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

// ListenAddresses are the host:port pairs that L7 listens on.
func (c L7) ListenAddresses() []string {
	var out []string
	for _, a := range c.Addresses {
		host := a
		if a == EdgeAddresses {
			host = ""
		}
		out = append(out, hostPort(host, c.HTTPPort))
	}
	return out
}
