package watcher

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"sallyport/watcher/model"
	"sallyport/watcher/objects"
	"sallyport/watcher/translate"
)

// TestSlimmingChangesNothing: of all that translation's scenarios say, an edge that has dropped what it does not need makes the same.
func TestSlimmingChangesNothing(t *testing.T) {
	files, err := filepath.Glob("translate/testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	options := translate.Options{IPv6: true, SCTP: true, ProxyProtocol: true, ClusterIPs: true, Zone: "a", TLS: true,
		ExternalIPs:   []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		PodsReachable: func(n model.ObjectRef) bool { return n.Name == "n1" }}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var whole, slim objects.Objects
		for _, f := range archive.Files {
			if strings.HasPrefix(f.Name, "in") {
				whole = append(whole, objects.Parse(file, f.Data).Objects)
				slim = append(slim, slimmed(objects.Parse(file, f.Data).Objects))
			}
		}
		if want, got := translate.Translate(whole, options), translate.Translate(slim, options); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: slim objects become\n%+v\nwhole ones\n%+v", file, got, want)
		}
	}
}

// slimmed are the objects as they are cached.
func slimmed(c objects.Cluster) objects.Cluster {
	v := newSharedValues()
	for _, o := range c.Services {
		slimMeta(o)
		v.slimService(o)
	}
	for _, o := range c.EndpointSlices {
		slimMeta(o)
		v.slimEndpointSlice(o)
	}
	for _, o := range c.Nodes {
		slimMeta(o)
		slimNode(o)
	}
	for _, o := range c.Secrets {
		slimMeta(o)
		slimSecret(o)
	}
	for _, o := range c.Ingresses {
		slimMeta(o)
	}
	return c
}
