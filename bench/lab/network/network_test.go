package network

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// require skips the test on a machine that cannot run a lab, unless the environment demands the lab.
func require(t *testing.T) {
	t.Helper()
	switch err := Requirements(); {
	case err == nil:
	case os.Getenv("SALLYPORT_LAB") == "required":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

func create(t *testing.T, lab string) *Network {
	t.Helper()
	require(t)
	n, err := Create(Options{Lab: lab, Nodes: 2, Edges: 2, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(lab); err != nil {
			t.Error(err)
		}
	})
	return n
}

// answers opens a listener on host at addr and reports whether from can exchange a byte with it.
func answers(t *testing.T, from, host *Host, addr netip.Addr) error {
	t.Helper()
	var listener net.Listener
	err := host.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	return conn.Close()
}

func TestWhoReachesWhom(t *testing.T) {
	n := create(t, "net-reach")
	at := func(name string) netip.Addr { return n.Host(name).Addr }
	nodes := func(name string) netip.Addr { return n.Host(name).NodesAddr }
	for _, tt := range []struct {
		from, to string
		addr     netip.Addr
		ok       bool
	}{
		{"client", "edge-1", at("edge-1"), true},
		{"client", "edge-2", n.Host("edge-2").Addr6, true},
		{"client", "router", at("router"), true},
		{"edge-1", "edge-2", nodes("edge-2"), true},
		{"edge-1", "node-2", at("node-2"), true},
		{"edge-1", "node-2", n.Host("node-2").Addr6, true},
		{"node-1", "node-2", at("node-2"), true},
		{"client", "node-1", at("node-1"), false},
		{"node-1", "client", at("client"), false},
		{"router", "node-1", at("node-1"), false},
		{"client", "control", n.API, true},
		{"router", "control", n.API, true},
		{"edge-1", "control", n.API, true},
		{"node-1", "control", n.API, true},
	} {
		err := answers(t, n.Host(tt.from), n.Host(tt.to), tt.addr)
		if (err == nil) != tt.ok {
			t.Errorf("from %s to %s at %v: %v, want ok %v", tt.from, tt.to, tt.addr, err, tt.ok)
		}
	}
}

func TestRootNamespaceReachesTheAPIAddress(t *testing.T) {
	n := create(t, "net-root")
	var listener net.Listener
	err := n.Host("control").Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(n.API, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.DialTimeout("tcp", listener.Addr().String(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestHostsHaveTheirOwnNameAndRun(t *testing.T) {
	n := create(t, "net-own")
	host := n.Host("edge-1")
	out, err := host.Command(t.Context(), "sh", "-c", "hostname; echo mine > /run/xtables.lock; echo $"+LabVariable).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, want := string(out), "edge-1\nnet-own\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, err := os.ReadFile(filepath.Join(host.Folder, "xtables.lock")); string(got) != "mine\n" {
		t.Errorf("the host's /run holds %q, %v", got, err)
	}
}

func TestEndOfContextKillsTheWholeCommand(t *testing.T) {
	n := create(t, "net-kill")
	ctx, cancel := context.WithCancel(t.Context())
	cmd := n.Host("client").Command(ctx, "sh", "-c", "sleep 1000 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	cancel()
	closed := make(chan struct{})
	go func() { // ends when the last process that holds the output has ended
		defer close(closed)
		if _, err := io.Copy(io.Discard, out); err != nil {
			t.Errorf("read the command's output: %v", err)
		}
	}()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the command's child lives on")
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended well although its context was cancelled")
	}
}

func TestTwoLabsAtOnceAndNothingLeft(t *testing.T) {
	one, two := create(t, "net-one"), create(t, "net-two")
	if one.API == two.API || one.Pool == two.Pool {
		t.Errorf("both labs have the API address %v or the pool %v", one.API, one.Pool)
	}
	if err := Remove("net-one"); err != nil {
		t.Fatal(err)
	}
	left, err := Namespaces("net-one")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %s, %v", strings.Join(left, ", "), err)
	}
	if links, err := uplinksOf("net-one"); err != nil || len(links) > 0 {
		t.Errorf("left behind: %v, %v", links, err)
	}
	if err := answers(t, two.Host("client"), two.Host("edge-1"), two.Host("edge-1").Addr); err != nil {
		t.Errorf("the other lab was harmed: %v", err)
	}
}

// What was killed while it made or deleted a namespace leaves a name without one.
func TestRemoveTakesANameWithoutANamespace(t *testing.T) {
	create(t, "net-half")
	file := filepath.Join(NamespaceFolder, Prefix("net-half")+"pod.12345678")
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(file) })
	if err := Remove("net-half"); err != nil {
		t.Error(err)
	}
	if left, err := Namespaces("net-half"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %s, %v", strings.Join(left, ", "), err)
	}
	if err := DeleteNamespace(Prefix("net-half") + "pod.12345678"); err != nil {
		t.Errorf("a name that does not exist: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, o := range []Options{{Lab: "a.b", Nodes: 1}, {Lab: "a", Nodes: 0}, {Lab: "a", Nodes: 1, Edges: maxEdges + 1}} {
		if _, err := Create(o); err == nil {
			t.Errorf("Create(%+v) made a network", o)
		}
	}
}
