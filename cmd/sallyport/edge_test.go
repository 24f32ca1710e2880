package main

import (
	"testing"

	"sallyport/cmd/sallyport/config"
)

// Who asks for an IPv6 VIP that the kernel dataplane would pass over is told, rather than shown it in the Service's status.
func TestTranslationKnowsWhichVIPsTheDataplaneServes(t *testing.T) {
	for dataplane, want := range map[string]bool{config.Default().L4.Dataplane: false, config.DataplaneUserspace: true} {
		c := config.Default()
		c.L4.Dataplane = dataplane
		if got := translateOptions(c, nil).IPv6; got != want {
			t.Errorf("dataplane %s: IPv6: %v, want %v", dataplane, got, want)
		}
	}
}
