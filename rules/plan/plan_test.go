package plan

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestDisjoint(t *testing.T) {
	var in []netip.Prefix
	for p := range strings.FieldsSeq("10.1.1.0/24 10.0.0.11/32 10.1.0.0/16 10.1.1.13/32 10.2.0.0/24 10.2.0.0/24") {
		in = append(in, netip.MustParsePrefix(p))
	}
	if got, want := fmt.Sprint(Disjoint(in)), "[10.0.0.11/32 10.1.0.0/16 10.2.0.0/24]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
