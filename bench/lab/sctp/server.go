package sctp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// maxPacket bounds a packet that is read, in bytes.
const maxPacket = 1500

// Command is the program that serves: the image sctp of the lab.
func Command() *cobra.Command {
	var port uint16
	cmd := &cobra.Command{
		Use:   "sctp",
		Short: "Answer INIT to a port by INIT ACK with the host name as its cookie",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			s, err := Listen(port, name, slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)))
			if err != nil {
				return err
			}
			return s.Serve(cmd.Context())
		},
	}
	cmd.Flags().Uint16Var(&port, "port", 9999, "port to answer on; INIT to others is answered by ABORT")
	return cmd
}

// A Server answers INIT in both families: by INIT ACK with a name as its cookie on its port, by ABORT on others (RFC 9260
// section 8.4).
type Server struct {
	port  uint16
	name  string
	log   *slog.Logger
	conns []*net.IPConn
}

// Listen opens the sockets of a server. It needs CAP_NET_RAW.
func Listen(port uint16, name string, log *slog.Logger) (*Server, error) {
	s := &Server{port: port, name: name, log: log}
	for _, network := range []string{"ip4", "ip6"} {
		conn, err := net.ListenIP(fmt.Sprintf("%s:%d", network, Protocol), nil)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("listen on %s: %w", network, err)
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

func (s *Server) close() {
	for _, conn := range s.conns {
		conn.Close()
	}
}

// Serve answers until ctx ends. It closes the server's sockets.
func (s *Server) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, s.close)()
	for _, conn := range s.conns {
		group.Go(func() error { return s.serve(conn) })
	}
	return group.Wait()
}

// serve answers what comes by conn until that is closed.
func (s *Server) serve(conn *net.IPConn) error {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read: %w", err)
		}
		in, err := parse(buf[:n])
		if err != nil {
			s.log.Warn("packet is not understood", "from", from, "err", err)
			continue
		}
		if in.chunk != chunkInit {
			continue
		}
		if _, err := conn.WriteTo(s.answer(in).marshal(), from); err != nil {
			s.log.Warn("answer is not sent", "to", from, "err", err)
		}
	}
}

// answer is what the server says to an INIT.
func (s *Server) answer(in packet) packet {
	out := packet{source: in.destination, destination: in.source, tag: in.initiate, chunk: chunkAbort}
	if in.destination == s.port {
		out.chunk, out.initiate, out.cookie = chunkInitAck, in.initiate+1, s.name
	}
	return out
}
