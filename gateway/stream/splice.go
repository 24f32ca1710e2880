package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how much a pipe is asked to hold: with a quarter, to move a MiB takes half as much CPU time again. The kernel
	// may give less to a user that has many.
	pipeSize = 1 << 20
	// freePipes bounds the pipes kept for later: half of those that the kernel gives to an unprivileged user in full
	// (fs.pipe-user-pages-soft, 64 MiB).
	freePipes = 32
)

// A pipe is what the kernel moves data through from one socket to another (splice(2)).
type pipe struct{ r, w int }

// pipes are those that are not in use. Package net's splice, by io.Copy, would hold one for each direction of each connection
// also while nothing moves: four more file descriptors a connection, and for an unprivileged user, from some 30 connections on,
// pipes of two pages.
type pipes struct{ free chan pipe }

func newPipes() pipes { return pipes{make(chan pipe, freePipes)} }

// get returns an empty pipe.
func (p pipes) get() (pipe, error) {
	select {
	case free := <-p.free:
		return free, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, fmt.Errorf("make a pipe: %w", err)
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // with less, data moves in smaller pieces
	return pipe{fds[0], fds[1]}, nil
}

// put takes back an empty pipe.
func (p pipes) put(empty pipe) {
	select {
	case p.free <- empty:
	default:
		empty.close()
	}
}

// close closes the pipes that are not in use.
func (p pipes) close() {
	for {
		select {
		case free := <-p.free:
			free.close()
		default:
			return
		}
	}
}

func (p pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// errNoSplice says that data has to be copied.
var errNoSplice = errors.New("the kernel does not splice")

// A splicer moves what one connection receives to another one without a copy.
type splicer struct {
	pipes      pipes
	src, dst   syscall.RawConn
	take, give func(fd uintptr) bool // made once: method values allocate
	pipe       pipe                  // in use while left is not 0
	left       int                   // bytes in it
	err        error                 // of take or give
}

// move passes on what src receives until its end, and returns the number of bytes. Where the kernel does not splice, or there
// are no pipes to be had, package net does what it can.
func (p pipes) move(dst, src *net.TCPConn) (moved int64, err error) {
	s := &splicer{pipes: p}
	s.take, s.give = s.takeSome, s.giveAll
	if s.src, err = src.SyscallConn(); err != nil {
		return 0, err
	}
	if s.dst, err = dst.SyscallConn(); err != nil {
		return 0, err
	}
	for {
		n, err := s.step()
		moved += int64(n)
		switch {
		case errors.Is(err, errNoSplice):
			rest, err := dst.ReadFrom(src)
			return moved + rest, err
		case err != nil || n == 0:
			return moved, err
		}
	}
}

// step waits for data and moves it; 0 is the end.
func (s *splicer) step() (moved int, err error) {
	if err := s.src.Read(s.take); err != nil {
		return 0, err
	}
	taken := s.left
	if s.err != nil || taken == 0 {
		return 0, s.err
	}
	if err = s.dst.Write(s.give); err == nil {
		err = s.err
	}
	if err != nil {
		s.pipe.close()
		return taken - s.left, err
	}
	s.pipes.put(s.pipe)
	return taken, nil
}

// takeSome fills a pipe with what the socket has received. It is called whenever there may be something; false means that there
// is not.
func (s *splicer) takeSome(fd uintptr) bool {
	if s.pipe, s.err = s.pipes.get(); s.err != nil {
		s.err = fmt.Errorf("%w: %w", errNoSplice, s.err)
		return true
	}
	s.left, s.err = splice(int(fd), s.pipe.w, pipeSize)
	if s.left > 0 {
		return true
	}
	s.pipes.put(s.pipe)
	if errors.Is(s.err, unix.EINVAL) || errors.Is(s.err, unix.ENOSYS) {
		s.err = fmt.Errorf("%w: %w", errNoSplice, s.err)
	}
	return !errors.Is(s.err, unix.EAGAIN)
}

// giveAll empties the pipe into the socket; false means that there is no room at the moment.
func (s *splicer) giveAll(fd uintptr) bool {
	for s.left > 0 {
		var n int
		if n, s.err = splice(s.pipe.r, int(fd), s.left); s.err != nil {
			return !errors.Is(s.err, unix.EAGAIN)
		}
		if n == 0 {
			s.err = io.ErrShortWrite
			return true
		}
		s.left -= n
	}
	return true
}

// splice moves up to n bytes, and returns 0 with an error, or at the end.
func splice(from, to, n int) (int, error) {
	for {
		moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err == unix.EINTR {
			continue
		}
		return max(int(moved), 0), err
	}
}
