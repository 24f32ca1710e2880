package model

import (
	"crypto/tls"
	"time"
)

// A Certificate is a TLS certificate with its key, from a Secret of type kubernetes.io/tls.
type Certificate struct {
	// Ref is the Secret.
	Ref ObjectRef `json:"ref"`
	// Hosts present this certificate to clients that name them (RFC 6066 section 3, SNI), as in Route.Host: names, or
	// "*." and a name for one label of any value. Ordered; no other Certificate has one of them.
	Hosts []string `json:"hosts,omitempty"`
	// Default says that it is presented to clients that name no host, or one that no Certificate has. One at most is.
	Default bool `json:"default,omitempty"`
	// NotAfter is the end of the validity of the leaf.
	NotAfter time.Time `json:"notAfter"`
	// Pair is the chain and the private key; its Leaf is parsed. It is never printed.
	Pair *tls.Certificate `json:"-"`
}
