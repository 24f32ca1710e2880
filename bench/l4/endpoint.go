package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"time"
)

// What a client asks an endpoint for, by one byte.
const (
	askEcho     = 'e' // the same byte, at once
	askThink    = 't' // the same byte, after thinkTime
	askDownload = 'd' // a chunk every chunkEvery, until the connection ends
)

const (
	thinkTime  = 3 * time.Second
	chunkEvery = 100 * time.Millisecond
	chunkBytes = 1000
)

// greet says on each connection at which address it came in (4 bytes), then does as it is asked. It ends with the listener.
func greet(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			at := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().As4()
			if _, err := conn.Write(at[:]); err == nil {
				_ = converse(conn) // ends when the client resets or closes
			}
		}()
	}
}

// converse answers until the connection ends.
func converse(conn net.Conn) error {
	ask := make([]byte, 1)
	for {
		if _, err := conn.Read(ask); err != nil {
			return err
		}
		switch ask[0] {
		case askThink:
			if err := idle(conn, thinkTime); err != nil {
				return err
			}
		case askDownload:
			return upload(conn)
		}
		if _, err := conn.Write(ask); err != nil {
			return err
		}
	}
}

// idle waits, but not beyond the end of the connection. The client sends nothing meanwhile.
func idle(conn net.Conn, d time.Duration) error {
	if err := conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the client has gone, or does not wait")
	}
	return conn.SetReadDeadline(time.Time{})
}

// upload sends chunks until the connection ends.
func upload(conn net.Conn) error {
	chunk := bytes.Repeat([]byte{askDownload}, chunkBytes)
	for {
		if _, err := conn.Write(chunk); err != nil {
			return err
		}
		if err := idle(conn, chunkEvery); err != nil {
			return err
		}
	}
}
