package main

import (
	"testing"

	"sallyport/cmd/sallyport/config"
)

// Who asks for an IPv6 VIP that the kernel dataplane would pass over is told, rather than shown it in the Service's status.
func TestTranslationKnowsWhichVIPsTheDataplaneServes(t *testing.T) {
	for dataplane, want := range map[string]bool{config.Default().L4.Dataplane: true, config.DataplaneUserspace: false} {
		c := config.Default()
		c.L4.Dataplane = dataplane
		if got := translateOptions(c, nil).OnlyIPv4VIPs; got != want {
			t.Errorf("dataplane %s: only IPv4 VIPs: %v, want %v", dataplane, got, want)
		}
	}
}
