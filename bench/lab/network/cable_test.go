package network

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// eventually waits until cond holds: links pass on a change of their carrier a moment later.
func eventually(t *testing.T, cond func() error) {
	t.Helper()
	deadline, tick := time.After(5*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for {
		err := cond()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-tick.C:
		}
	}
}

// carrier returns nil when the host's link is as wanted.
func carrier(h *Host, link string, want bool) error {
	return h.Do(func() error {
		l, err := netlink.LinkByName(link)
		if err == nil && (l.Attrs().OperState == netlink.OperUp) != want {
			err = fmt.Errorf("%s of %s is %v, want carrier %v", link, h.Name, l.Attrs().OperState, want)
		}
		return err
	})
}

func TestCable(t *testing.T) {
	n := create(t, "net-cable")
	edge, client, node := n.Host("edge-1"), n.Host("client"), n.Host("node-1")
	cut := func(fault Fault) {
		t.Helper()
		if err := edge.CutCable(ClientsLink, fault); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return carrier(edge, ClientsLink, fault == Silent) })
		if err := answers(t, client, edge, edge.Addr); err == nil {
			t.Errorf("fault %d: the edge is reached over a cable that is cut", fault)
		}
		if err := answers(t, node, edge, edge.NodesAddr); err != nil {
			t.Errorf("fault %d: the other cable: %v", fault, err)
		}
	}
	mend := func() {
		t.Helper()
		if err := edge.MendCable(ClientsLink); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error { return carrier(edge, ClientsLink, true) })
		eventually(t, func() error { return answers(t, client, edge, edge.Addr) })
		eventually(t, func() error { return answers(t, client, edge, edge.Addr6) })
	}
	mend() // what is whole
	cut(NoCarrier)
	mend()
	cut(Silent)
	for _, again := range []Fault{NoCarrier, Silent, Silent} {
		if err := edge.CutCable(ClientsLink, again); err != nil {
			t.Errorf("a cable that is cut already: %v", err)
		}
		eventually(t, func() error { return carrier(edge, ClientsLink, again == Silent) })
	}
	mend()
}

func TestCableThatIsNotThere(t *testing.T) {
	n := create(t, "net-nocable")
	for _, tt := range []struct{ host, link, want string }{
		{"client", NodesLink, `cut cable nodes of host client: the host has no link "nodes"`},
		{"client", "uplink", `find network "uplink" (there are clients and nodes)`},
		{"client", "", `find network ""`},
	} {
		if err := n.Host(tt.host).CutCable(tt.link, NoCarrier); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}
