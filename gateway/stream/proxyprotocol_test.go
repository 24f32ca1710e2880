package stream

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"sallyport/watcher/model"
)

func TestProxyHeader(t *testing.T) {
	for _, tt := range []struct {
		version      uint8
		client, edge string
		want         string
	}{
		{1, "192.0.2.9:54321", "198.51.100.1:80", "PROXY TCP4 192.0.2.9 198.51.100.1 54321 80\r\n"},
		{1, "[2001:db8::9]:1", "[2001:db8:1::]:65535", "PROXY TCP6 2001:db8::9 2001:db8:1:: 1 65535\r\n"},
		{2, "192.0.2.9:54321", "198.51.100.1:80",
			"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x09\xc6\x33\x64\x01\xd4\x31\x00\x50"},
		{2, "[2001:db8::9]:1", "[2001:db8:1::]:65535",
			"\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24" +
				"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09" +
				"\x20\x01\x0d\xb8\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff"},
	} {
		client, edge := netip.MustParseAddrPort(tt.client), netip.MustParseAddrPort(tt.edge)
		got := string(appendProxyHeader(nil, tt.version, client, edge))
		if got != tt.want {
			t.Errorf("version %d of %s to %s:\ngot  %q\nwant %q", tt.version, tt.client, tt.edge, got, tt.want)
		}
		parsed, err := proxyproto.Read(bufio.NewReader(strings.NewReader(got)))
		if err != nil {
			t.Errorf("version %d: %v", tt.version, err)
			continue
		}
		if s := fmt.Sprint(parsed.SourceAddr, " ", parsed.DestinationAddr); s != tt.client+" "+tt.edge {
			t.Errorf("version %d is read as %s, want %s %s", tt.version, s, tt.client, tt.edge)
		}
	}
}

// introduced is a server that says who its client is, by the header alone, before the client has said a word; and then repeats
// what it hears.
func introduced(t *testing.T) netip.AddrPort {
	return tcpServer(t, func(c *net.TCPConn) {
		c.SetReadDeadline(time.Now().Add(patience))
		r := bufio.NewReader(c)
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Errorf("PROXY header: %v", err)
			return
		}
		fmt.Fprintf(c, "%d %v %v\n", h.Version, h.SourceAddr, h.DestinationAddr)
		io.Copy(c, r)
	})
}

func TestProxyProtocolTellsTheClient(t *testing.T) {
	port := freePort(t)
	p := New(Options{})
	t.Cleanup(p.Close)
	svc := service("web", model.TCP, port, introduced(t))
	for _, version := range []uint8{1, 2} {
		svc.ProxyProtocol = version
		if err := p.Reconcile(t.Context(), &model.Snapshot{Services: []model.Service{svc}}); err != nil {
			t.Fatal(err)
		}
		for _, ip := range []netip.Addr{loopback(), netip.IPv6Loopback()} {
			edge := netip.AddrPortFrom(ip, port).String()
			c := dial(t, edge)
			c.mustLine(t, fmt.Sprintf("%d %v %s", version, c.LocalAddr(), edge))
			c.mustEcho(t)
		}
	}
}

// What a client has sent by the time that its destination is there goes along with the header, and is counted.
func TestProxyProtocolTakesEarlyDataAlong(t *testing.T) {
	for name, early := range map[string]string{"nothing": "", "a line": "hello\n", "more than fits": strings.Repeat("x", 3*earlyData) + "\n"} {
		t.Run(name, func(t *testing.T) {
			client, r, endpoint := aRelay(t)
			io.WriteString(client, early)
			awaitData(t, r.client, min(len(early), earlyData))
			sent, err := r.introduce(1)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 2*earlyData)
			n, err := endpoint.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			header, data, _ := strings.Cut(string(buf[:n]), "\r\n")
			if !strings.HasPrefix(header, "PROXY TCP4 ") || len(data) != sent || !strings.HasPrefix(early, data) || (sent == 0) != (early == "") {
				t.Errorf("first read = %q and %d bytes of data, of which introduce tells %d", header, len(data), sent)
			}
		})
	}
}

// A reset that comes before the header must not look like the client's end.
func TestProxyProtocolNoticesAReset(t *testing.T) {
	client, r, _ := aRelay(t)
	reset(client)
	awaitState(t, r.client, unix.BPF_TCP_CLOSE)
	if _, err := r.introduce(2); err == nil {
		t.Error("introduce succeeds for a client that has reset its connection")
	}
}

// aRelay returns a relay that does not run, and the far ends of its connections.
func aRelay(t testing.TB) (client *net.TCPConn, r *relay, endpoint *net.TCPConn) {
	t.Helper()
	client, front := tcpPair(t)
	back, endpoint := tcpPair(t)
	return client, newRelay(front, back, new(traffic)), endpoint
}

// tcpPair returns both ends of a connection.
func tcpPair(t testing.TB) (dialed, accepted *net.TCPConn) {
	t.Helper()
	ends := make(chan *net.TCPConn)
	addr := tcpServer(t, func(c *net.TCPConn) {
		ends <- c
		<-t.Context().Done()
	})
	dialed = dial(t, addr.String()).TCPConn
	accepted = <-ends
	accepted.SetDeadline(time.Now().Add(patience))
	return dialed, accepted
}

// awaitData waits until n bytes can be read.
func awaitData(t testing.TB, c *net.TCPConn, n int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d bytes have arrived", n), func() bool { return received(c) >= uint64(n) })
}

// awaitState waits until the kernel has the connection in the state.
func awaitState(t testing.TB, c *net.TCPConn, state uint8) {
	t.Helper()
	eventually(t, fmt.Sprintf("the connection is in state %d", state), func() bool {
		info, err := tcpInfo(c)
		return err == nil && info.State == state
	})
}
