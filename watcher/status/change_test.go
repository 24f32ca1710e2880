package status

import (
	"net/netip"
	"testing"

	"sallyport/watcher/model"
)

func statusAddresses(ipMode string, ips ...string) []model.StatusAddress {
	var list []model.StatusAddress
	for _, ip := range addrs(ips...) {
		list = append(list, model.StatusAddress{IP: ip, IPMode: ipMode})
	}
	return list
}

func TestChangesOfServices(t *testing.T) {
	ours := statusAddresses("Proxy", "192.0.2.10")
	for _, tt := range []struct {
		name string
		seen model.Status
		vips []netip.Addr
		want string // addresses, "release", or "nothing"
	}{
		{"new", model.Status{Served: true}, addrs("192.0.2.10"), "192.0.2.10"},
		{"in place", model.Status{Served: true, Marked: true, Addresses: ours}, addrs("192.0.2.10"), "nothing"},
		{"without condition", model.Status{Served: true, Addresses: ours}, addrs("192.0.2.10"), "192.0.2.10"},
		{"of ipMode VIP", model.Status{Served: true, Marked: true, Addresses: statusAddresses("VIP", "192.0.2.10")}, addrs("192.0.2.10"), "192.0.2.10"},
		{"an address more", model.Status{Served: true, Marked: true, Addresses: ours}, addrs("192.0.2.10", "2001:db8::1"), "192.0.2.10, 2001:db8::1"},
		{"a hostname beside", model.Status{Served: true, Marked: true, Addresses: append([]model.StatusAddress{{Hostname: "a"}}, ours...)},
			addrs("192.0.2.10"), "192.0.2.10"},
		{"no VIP and nothing of ours", model.Status{Served: true, Addresses: statusAddresses("VIP", "198.51.100.1")}, nil, "nothing"},
		{"VIP withdrawn", model.Status{Served: true, Marked: true, Addresses: ours}, nil, "release"},
		{"served no more", model.Status{Marked: true, Addresses: ours}, nil, "release"},
		{"served no more, with a VIP yet", model.Status{Marked: true, Addresses: ours}, addrs("192.0.2.10"), "release"},
		{"of another type, cleared by the API server", model.Status{Marked: true}, nil, "release"},
		{"never ours", model.Status{Addresses: ours}, nil, "nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ref := model.ObjectRef{Cluster: "east", Kind: "Service", Namespace: "shop", Name: "web"}
			tt.seen.Ref = ref
			s := &model.Snapshot{Services: []model.Service{{Ref: ref, VIPs: tt.vips}}, Statuses: []model.Status{tt.seen}}
			if got := describeChanges(changes(s, "east", addrs("192.0.2.1"))); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if got := describeChanges(changes(s, "west", addrs("192.0.2.1"))); got != "nothing" {
				t.Errorf("for another cluster: got %s, want nothing", got)
			}
		})
	}
}

func TestChangesOfIngresses(t *testing.T) {
	for _, tt := range []struct {
		name string
		seen model.Status
		ours []netip.Addr
		want string
	}{
		{"new", model.Status{Served: true}, addrs("192.0.2.1"), "192.0.2.1"},
		{"in place", model.Status{Served: true, Addresses: statusAddresses("", "192.0.2.1")}, addrs("192.0.2.1"), "nothing"},
		{"of the controller before us", model.Status{Served: true, Addresses: statusAddresses("", "198.51.100.1")}, addrs("192.0.2.1"), "192.0.2.1"},
		{"served no more", model.Status{Addresses: statusAddresses("", "192.0.2.1")}, addrs("192.0.2.1"), "release"},
		{"of another controller", model.Status{Addresses: statusAddresses("", "198.51.100.1")}, addrs("192.0.2.1"), "nothing"},
		{"never ours, and empty", model.Status{}, nil, "nothing"},
		{"no addresses to show", model.Status{Served: true, Addresses: statusAddresses("", "192.0.2.1")}, nil, "nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.seen.Ref = model.ObjectRef{Kind: "Ingress", Namespace: "shop", Name: "web"}
			s := &model.Snapshot{Statuses: []model.Status{tt.seen}}
			if got := describeChanges(changes(s, "", tt.ours)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// describeChanges is for one object.
func describeChanges(list []change) string {
	switch {
	case len(list) == 0:
		return "nothing"
	case len(list[0].want) == 0:
		return "release"
	}
	return addressList(list[0].want)
}
