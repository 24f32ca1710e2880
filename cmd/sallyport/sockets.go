package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"sallyport/cmd/sallyport/systemd"
)

// sockets are listeners that outlive the process: systemd keeps a duplicate of each (FileDescriptorStoreMax=), so that
// connections wait in the kernel's queue while one process ends and the next one starts, and hands them to that one.
type sockets struct {
	inherited map[string][]*os.File
	log       *slog.Logger
}

// inheritSockets takes over what the last process left with systemd. It is nil where no service manager is.
func inheritSockets(log *slog.Logger) *sockets {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	return &sockets{inherited: systemd.Inherited(), log: log.With("part", "sockets")}
}

// listen returns the inherited listener of the address, or makes one and leaves a duplicate with systemd.
func (s *sockets) listen(ctx context.Context, network, address string) (net.Listener, error) {
	name := network + " " + address
	if files := s.inherited[name]; len(files) > 0 {
		l, err := tcpListener(files[0])
		err = errors.Join(err, closeFiles(files)) // the listener has a duplicate
		delete(s.inherited, name)
		if err == nil {
			s.log.InfoContext(ctx, "listener taken over from the last process", "address", address)
			return l, nil
		}
		s.log.WarnContext(ctx, "inherited listener is not usable, making a new one", "address", address, "err", err)
		s.forget(ctx, name)
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if err := store(name, l); err != nil { // it serves all the same; the next restart will not be seamless
		s.log.WarnContext(ctx, "listener is not kept over a restart", "address", address, "err", err)
	}
	return l, nil
}

// tcpListener is what store has left; another unit may have put anything under the name.
func tcpListener(f *os.File) (net.Listener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if tcp, ok := l.(*net.TCPListener); ok {
		return tcp, nil
	}
	return nil, errors.Join(fmt.Errorf("it listens on %s, which is not TCP", l.Addr().Network()), l.Close())
}

func store(name string, l net.Listener) error {
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		return fmt.Errorf("%T has no descriptor", l)
	}
	f, err := tcp.File()
	if err != nil {
		return err
	}
	return errors.Join(systemd.Store(name, f), f.Close())
}

// forgetRest closes what nobody listened on: the configuration has changed, and clients would wait there for ever.
func (s *sockets) forgetRest(ctx context.Context) {
	if s == nil {
		return
	}
	for name, files := range s.inherited {
		s.log.InfoContext(ctx, "inherited listener is no longer configured, closing it", "name", name)
		if err := closeFiles(files); err != nil {
			s.log.WarnContext(ctx, "close inherited listener", "name", name, "err", err)
		}
		s.forget(ctx, name)
	}
	s.inherited = nil
}

func (s *sockets) forget(ctx context.Context, name string) {
	if err := systemd.Forget(name); err != nil {
		s.log.WarnContext(ctx, "systemd keeps a listener that is not used", "name", name, "err", err)
	}
}

func closeFiles(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
