package objects

import "testing"

func TestTake(t *testing.T) {
	from := Parse("f.yaml", []byte(everything)).Objects
	for _, tt := range []struct {
		name   string
		denial Denial
		want   string
	}{
		{"a kind", Denial{Kind: "Service"}, "Service shop/api\nService shop/web\n"},
		{"a kind without namespaces", Denial{Kind: "Node"}, "Node n1\n"},
		{"all Secrets", Denial{Kind: "Secret"}, "Secret shop/tls\n"},
		{"a namespace's Secrets", Denial{Kind: "Secret", Namespace: "shop"}, "Secret shop/tls\n"},
		{"another namespace's", Denial{Kind: "Secret", Namespace: "other"}, ""},
		{"one Secret", Denial{Kind: "Secret", Namespace: "shop", Name: "tls"}, "Secret shop/tls\n"},
		{"another one", Denial{Kind: "Secret", Namespace: "shop", Name: "x"}, ""},
		{"a kind that is not read", Denial{Kind: "Pod"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Manifest
			taken := m.Objects.Take(tt.denial, from)
			if got := summary(m); got != tt.want || taken != (tt.want != "") {
				t.Errorf("got %v\n%s\nwant\n%s", taken, got, tt.want)
			}
		})
	}
	c := Parse("f.yaml", []byte(web)).Objects
	if !c.Take(Denial{Kind: "Service"}, from) || len(c.Services) != 2 || len(c.Services[0].Annotations) != 0 {
		t.Errorf("what is there must stay, and the other one come: %v", c.Services)
	}
}
