package nftables

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"syscall"
	"testing"
	"time"

	"sallyport/rules/netlab"
	"sallyport/rules/plan"
	"sallyport/rules/scenario"
)

// initChunk is an SCTP packet (RFC 9260, section 3) that opens an association, since the kernel of a test may have no SCTP sockets.
func initChunk(from, to uint16) []byte {
	b := make([]byte, 32)
	binary.BigEndian.PutUint16(b[0:], from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[12] = 1                                   // INIT
	binary.BigEndian.PutUint16(b[14:], 20)      // length
	binary.BigEndian.PutUint32(b[16:], 1)       // initiate tag
	binary.BigEndian.PutUint32(b[20:], 1<<16)   // window
	binary.BigEndian.PutUint32(b[24:], 1<<16|1) // streams out and in
	binary.BigEndian.PutUint32(b[28:], 1)       // first TSN
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestSCTP sends INITs: they arrive at the endpoint's port, or are refused where there is none.
func TestSCTP(t *testing.T) {
	l := newLab(t, plan.Options{})
	l.apply(t, scenario.Service("sctp", "198.51.100.10 2001:db8:2::10", "SCTP 80 30001: 10.1.0.2:38412 [fd00:1::2]:38412", "SCTP 81 30002:"))
	for _, tt := range []struct {
		network, vip, edge, pod string
	}{
		{"ip4:132", "198.51.100.10", netlab.EdgeIPv4, "10.1.0.2"},
		{"ip6:132", "2001:db8:2::10", netlab.EdgeIPv6, "fd00:1::2"},
	} {
		t.Run(tt.network, func(t *testing.T) {
			var pod net.PacketConn
			netlab.In(t, l.Node, func() {
				var err error
				if pod, err = net.ListenPacket(tt.network, tt.pod); err != nil {
					t.Fatal(err)
				}
			})
			defer pod.Close()
			send := func(to string, port uint16) net.Conn {
				t.Helper()
				conn, err := netlab.Dial(t, l.Client, tt.network, to)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Write(initChunk(40000, port)); err != nil {
					t.Fatal(err)
				}
				return conn
			}
			b := make([]byte, 200)
			for to, port := range map[string]uint16{tt.vip: 80, tt.edge: 30001} {
				send(to, port)
				if err := pod.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if n, _, err := pod.ReadFrom(b); err != nil || n != 32 || binary.BigEndian.Uint16(b[2:]) != 38412 {
					t.Errorf("to %s: the pod gets %d bytes, %v, % x", to, n, err, b[:n])
				}
			}
			for to, port := range map[string]uint16{tt.vip: 81, tt.edge: 30002} {
				if _, err := send(to, port).Read(b); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("to %s, without endpoints: got %v, want a refusal", to, err)
				}
			}
		})
	}
}
