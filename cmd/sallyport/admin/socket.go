package admin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// listenSocket listens at a path that only this user and its group can open. A socket that an edge left behind is replaced, one that an
// edge answers at is not.
func listenSocket(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the admin socket: %w (choose another with edge.admin.socket)", err)
	}
	if err := unanswered(path); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the admin socket of an earlier run: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the admin socket: %w (choose another with edge.admin.socket)", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// unanswered fails if a process listens at path, which it also does if so many wait for it that one more is refused (EAGAIN).
func unanswered(path string) error {
	c, err := net.Dial("unix", path)
	if err == nil {
		err = c.Close()
	} else if !errors.Is(err, syscall.EAGAIN) {
		return nil
	}
	return errors.Join(fmt.Errorf("another edge runs on this machine: it answers at %s", path), err)
}
