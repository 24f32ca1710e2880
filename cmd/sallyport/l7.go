package main

import (
	"fmt"

	"sallyport/gateway"
)

// newL7 makes the HTTP proxy and binds its ports. Where systemd keeps sockets, they are those of the last process.
func (e *edge) newL7() error {
	c := e.config.L7
	o := gateway.Options{
		Addresses:          c.HTTPAddresses(),
		TLSAddresses:       c.HTTPSAddresses(),
		TLSMinVersion:      c.MinTLSVersion(),
		RedirectPort:       c.HTTPSPort,
		Hold:               startTime,
		TrustedProxies:     c.TrustedProxies,
		MaxHeaderBytes:     c.MaxRequestHeaderBytes,
		HeaderTimeout:      c.RequestHeaderTimeout,
		IdleTimeout:        c.IdleTimeout,
		ConnectTimeout:     c.ConnectTimeout,
		ResponseTimeout:    c.ResponseHeaderTimeout,
		DrainTime:          c.DrainTime,
		UpgradeIdleTimeout: c.UpgradeIdleTimeout,
		Log:                e.log,
		Metrics:            e.registry,
	}
	if e.sockets != nil {
		o.Listen = e.sockets.listen
	}
	e.gateway = gateway.New(o)
	if err := e.gateway.Listen(); err != nil {
		return fmt.Errorf("%w (l7.addresses, l7.httpPort and l7.httpsPort say where HTTP is served)", err)
	}
	return nil
}
