package iptables

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestTracer(t *testing.T) {
	const text = `*filter
:SALLY-INPUT - [0:0]
:SALLY-FORWARD - [0:0]
:SALLY-OUTPUT - [0:0]
-A SALLY-FORWARD -m mark --mark 0x53100000/0xfff00000 -j ACCEPT
-A SALLY-INPUT -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:SALLY-SERVICES - [0:0]
:SALLY-POSTROUTING - [0:0]
:SALLY-A - [0:0]
:SALLY-B - [0:0]
-A SALLY-SERVICES ! -d 198.51.100.0/24 -p tcp -m tcp --dport 80:90 -g SALLY-A
-A SALLY-SERVICES -p udp -j SALLY-B
-A SALLY-SERVICES -p udp -j DNAT --to-destination 10.9.9.9:9
-A SALLY-A -j HMARK --hmark-tuple src,sport --hmark-mod 2 --hmark-offset 0x53100000 --hmark-rnd 0x1
-A SALLY-A -m mark --mark 0x53100000 -j DNAT --to-destination 10.0.0.1:80
-A SALLY-A -m mark --mark 0x53100001 -j DNAT --to-destination 10.0.0.2:80
-A SALLY-B -s 203.0.113.0/24 -j RETURN
-A SALLY-B -j MARK --set-xmark 0x53100000/0xffffffff
-A SALLY-POSTROUTING -m mark --mark 0x53100000/0xfff00000 -j MASQUERADE
COMMIT
`
	tr, err := readRules(text, netip.MustParseAddr(edgeIP))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ flow, want string }{
		{"192.0.2.9 -> tcp 192.0.2.1:85", "10.0.0.1:80 10.0.0.2:80 masq marked unconnected"},
		{"192.0.2.9 -> tcp 192.0.2.1:91", "not ours"},
		{"192.0.2.9 -> tcp 198.51.100.7:85", "not ours"},
		{"192.0.2.9 -> udp 192.0.2.1:85", "10.9.9.9:9 masq marked unconnected"},
		{"203.0.113.1 -> udp 192.0.2.1:85", "10.9.9.9:9 unaccepted unconnected"},
		{"ESTABLISHED 192.0.2.9 -> tcp 192.0.2.1:85", "not ours"},
		{"INVALID 192.0.2.9 -> tcp 192.0.2.1:85", "DROP"},
	} {
		got, _ := tr.trace(tt.flow)
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.flow, got, tt.want)
		}
	}
}

func TestTracerRefuses(t *testing.T) {
	const skeleton = "*filter\n:SALLY-INPUT - [0:0]\n:SALLY-FORWARD - [0:0]\n:SALLY-OUTPUT - [0:0]\nCOMMIT\n*nat\n:SALLY-SERVICES - [0:0]\n:SALLY-POSTROUTING - [0:0]\n"
	for _, tt := range []struct{ name, lines, want string }{
		{"dangling jump", "-A SALLY-SERVICES -j SALLY-NONE", "-A SALLY-SERVICES -j SALLY-NONE: leads to missing chain"},
		{"unreferenced chain", ":SALLY-LONELY - [0:0]", "nat: nothing leads to chain SALLY-LONELY"},
		{"undeclared chain", "-A SALLY-X -j ACCEPT", "-A SALLY-X -j ACCEPT: chain is not declared"},
		{"unknown match", "-A SALLY-SERVICES -m recent --set x -j ACCEPT", `-A SALLY-SERVICES -m recent --set x -j ACCEPT: match "recent" --set is unknown to the tracer`},
		{"unknown target", "-A SALLY-SERVICES -j NOTRACK", `-A SALLY-SERVICES -j NOTRACK: target NOTRACK with arguments [] is unknown to the tracer`},
		{"bad destination", "-A SALLY-SERVICES -j DNAT --to-destination x", `-A SALLY-SERVICES -j DNAT --to-destination x: target DNAT with arguments ["--to-destination" "x"] is unknown to the tracer`},
		{"no target", "-A SALLY-SERVICES -p tcp", "-A SALLY-SERVICES -p tcp: no target"},
		{"second line in a name", "-A SALLY-SERVICES -m comment --comment a\n-F -j ACCEPT", `-A SALLY-SERVICES -m comment --comment a: no target`},
		{"not a rule", "hello", `line not understood: "hello\n"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readRules(skeleton + tt.lines + "\nCOMMIT\n")
			if fmt.Sprint(err) != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}
