package main

import (
	"testing"

	"sallyport/cmd/sallyport/config"
)

// Who asks for what the dataplane passes over is told, rather than shown it in the Service's status.
func TestTranslationKnowsWhatTheDataplaneServes(t *testing.T) {
	for _, tt := range []struct {
		dataplane, snat, returnPath      string
		sctp, proxyProtocol, keepsSource bool
	}{
		{config.DataplaneIptables, config.SNATAuto, config.ReturnDirect, true, false, false},
		{config.DataplaneIptables, config.SNATAuto, config.ReturnEdge, true, false, true},
		{config.DataplaneNFTables, config.SNATNever, config.ReturnEdge, true, false, true},
		{config.DataplaneNFTables, config.SNATAlways, config.ReturnEdge, true, false, false},
		{config.DataplaneUserspace, config.SNATAuto, config.ReturnEdge, false, true, false},
	} {
		c := config.Default()
		c.L4.Dataplane, c.L4.SNAT, c.L4.ReturnPath = tt.dataplane, tt.snat, tt.returnPath
		o := translateOptions(c, nil)
		if !o.IPv6 || o.SCTP != tt.sctp || o.ProxyProtocol != tt.proxyProtocol || o.KeepsSource != tt.keepsSource {
			t.Errorf("%+v: IPv6 %v, SCTP %v, PROXY protocol %v, keeps source %v", tt, o.IPv6, o.SCTP, o.ProxyProtocol, o.KeepsSource)
		}
	}
}
