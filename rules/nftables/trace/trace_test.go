package trace

import (
	"fmt"
	"testing"
)

const skeleton = "add table ip sallyport\nadd chain ip sallyport a { type nat hook output priority 0; }\n"

func TestTrace(t *testing.T) {
	tr, err := Read(`add table ip sallyport
add map ip sallyport services { type ipv4_addr . inet_proto . inet_service : verdict; }
add set ip sallyport inside { type ipv4_addr . inet_service; flags interval; }
add map ip sallyport to { typeof ip daddr . tcp dport . numgen random mod 2 : ip daddr . tcp dport; }
add map ip sallyport ids { type mark . ipv4_addr : mark; flags dynamic; }
add chain ip sallyport prerouting { type nat hook prerouting priority -110; policy accept; }
add chain ip sallyport postrouting { type nat hook postrouting priority 90; policy accept; }
add chain ip sallyport forward { type filter hook forward priority 0; policy accept; }
add chain ip sallyport input { type filter hook input priority 0; policy accept; }
add chain ip sallyport two
add rule ip sallyport prerouting ip daddr . meta l4proto . th dport vmap @services
add rule ip sallyport prerouting ip saddr . tcp sport @inside drop
add rule ip sallyport two ct mark set ct mark and 0xffffff or 0x53000000
add rule ip sallyport two dnat ip to ip daddr . tcp dport . jhash ip saddr mod 2 seed 0x1 map @to
add rule ip sallyport forward ct mark and 0xff000000 == 0x53000000 accept
add rule ip sallyport input ct state invalid drop
add rule ip sallyport input tcp dport { 22, 23 } reject with tcp reset
add rule ip sallyport postrouting ct mark and 0xff000000 != 0x53000000 return
add rule ip sallyport postrouting update @ids { meta mark . ip saddr timeout 9s : meta mark }
add rule ip sallyport postrouting masquerade fully-random
add element ip sallyport services { 198.51.100.1 . tcp . 80 comment "a/b" : goto two, 198.51.100.2 . tcp . 80 : drop }
add element ip sallyport inside { 10.0.0.0/8 . 1000-2000 }
add element ip sallyport to { 198.51.100.1 . 80 . 0 : 10.0.0.1 . 8, 198.51.100.1 . 80 . 1 : 10.0.0.2 . 8 }
`)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ flow, want string }{
		{"192.0.2.9 -> tcp 198.51.100.1:80", "10.0.0.1:8 10.0.0.2:8 masq"},
		{"192.0.2.9 -> tcp 198.51.100.2:80", "DROP"},
		{"192.0.2.9 -> udp 198.51.100.1:80", "not ours"},
		{"10.1.1.1:1500 -> tcp 203.0.113.1:80", "DROP"},
		{"10.1.1.1:2001 -> tcp 203.0.113.1:80", "not ours"},
		{"10.1.1.1:1500 -> udp 203.0.113.1:80", "not ours"},
		{"192.0.2.9 -> tcp 192.0.2.1:23", "REJECT"},
		{"INVALID 192.0.2.9 -> tcp 192.0.2.1:80", "DROP"},
		{"ESTABLISHED 192.0.2.9 -> tcp 198.51.100.2:80", "not ours"},
	} {
		if got, _ := tr.Trace(tt.flow); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.flow, got, tt.want)
		}
	}
	if fate, timeout := tr.Connect("192.0.2.9 -> tcp 198.51.100.1:80", 1); fate != "10.0.0.2:8 masq" || timeout != "9s" {
		t.Errorf("got %s, remembered for %s", fate, timeout)
	}
	if got := fmt.Sprint(tr.Elements("ids")); got != "map[0x0 . 192.0.2.9:0x0]" {
		t.Errorf("remembered %s", got)
	}
}

func TestRefuses(t *testing.T) {
	for _, tt := range []struct{ name, lines, want string }{
		{"dangling jump", "add rule ip sallyport a jump b", "jump b: leads to missing chain"},
		{"unreferenced chain", "add chain ip sallyport b", "nothing leads to chain b"},
		{"unknown set", "add rule ip sallyport a ip saddr @b drop", "ip saddr @b drop: there is no such set"},
		{"element of no set", "add element ip sallyport s { 1 }", "add element ip sallyport s { 1 }: there is no set s"},
		{"verdict to nowhere", "add map ip sallyport m { type mark : verdict; }\nadd element ip sallyport m { 1 : goto b }", "map m: 1: goto b: leads to missing chain"},
		{"another table", "add chain ip other a", `line not understood: "add chain ip other a"`},
		{"not a command", "hello", `line not understood: "hello"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read(skeleton + tt.lines + "\n")
			if fmt.Sprint(err) != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}
