package stream

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLocalAddr(t *testing.T) {
	v4 := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 7, Spec_dst: [4]byte{192, 0, 2, 1}, Addr: [4]byte{192, 0, 2, 255}})
	v6 := unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 7, Addr: netip.MustParseAddr("2001:db8::1").As16()})
	mapped := unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 7, Addr: netip.MustParseAddr("::ffff:192.0.2.1").As16()})
	for _, tt := range []struct {
		name    string
		control []byte
		want    string
	}{
		{"IPv4", v4, "192.0.2.1"},
		{"IPv6", v6, "2001:db8::1"},
		{"IPv4 on a socket for both", mapped, "192.0.2.1"},
		{"none", nil, "invalid IP"},
		{"cut short", v4[:len(v4)-8], "invalid IP"},
		{"another kind", unix.UnixRights(1), "invalid IP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := localAddr(tt.control).String(); got != tt.want {
				t.Errorf("localAddr = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestReplyControlLeavesTheInterfaceOpen(t *testing.T) {
	for _, tt := range []struct{ in, want []byte }{
		{
			unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 7, Spec_dst: [4]byte{192, 0, 2, 1}, Addr: [4]byte{192, 0, 2, 1}}),
			unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 0, Spec_dst: [4]byte{192, 0, 2, 1}, Addr: [4]byte{192, 0, 2, 1}}),
		},
		{
			unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 7, Addr: [16]byte{0x20, 1, 0xd, 0xb8}}),
			unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 0, Addr: [16]byte{0x20, 1, 0xd, 0xb8}}),
		},
		{nil, nil},
	} {
		if got := replyControl(bytes.Clone(tt.in)); !bytes.Equal(got, tt.want) {
			t.Errorf("replyControl(%x) = %x, want %x", tt.in, got, tt.want)
		}
	}
}
