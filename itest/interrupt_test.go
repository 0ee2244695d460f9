//go:build linux

package itest

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// Ctrl-C ends a connect and its connections also while no path leads to the machine: the local programs are reset at once,
// whatever they were doing, nothing of the forward is left, and the other end's programs hear of it with the next path.
func TestCtrlCEndsConnectionsThatWaitForAPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	heard := make(chan error, 4)
	ln, err := w.nas.Host.Listen("tcp", "127.0.0.1:9001")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { heard <- serveMode(c) }() // ends with the connection
		}
	}()
	w.nas.Start("expose", ln.Addr().String(), "--name", "modes").Wait("exposed")
	p := w.laptop.Start("connect", "modes", "127.0.0.1:2223")
	local := p.Wait("listening").Local

	ended := map[string]chan error{}
	for mode, use := range map[string]func(*net.TCPConn) error{
		"i": func(c *net.TCPConn) error { _, err := io.Copy(io.Discard, c); return err },
		"u": func(c *net.TCPConn) error { _, err := io.Copy(c, fwdtest.Pattern(1)); return err },
		"d": func(c *net.TCPConn) error { _, err := io.Copy(io.Discard, c); return err },
		"h": func(c *net.TCPConn) error {
			if err := c.CloseWrite(); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, c)
			return err
		},
	} {
		conn, err := w.laptop.Host.Dial(t.Context(), "tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(3 * fwdtest.Limit))
		if _, err := io.WriteString(conn, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		over := make(chan error, 1)
		ended[mode] = over
		go func() { over <- use(conn.(*net.TCPConn)) }() // ends with the connection
	}
	w.homes[1].Cable().Cut()
	w.laptop.WaitStatus("four detached sessions", func(s fwdtest.Status) bool {
		n := 0
		for _, x := range s.Sessions {
			if x.State == "detached" {
				n++
			}
		}
		return n == 4
	})
	if code := p.Interrupt(); code != 130 {
		t.Errorf("exit %d, want 130", code)
	}
	for mode, over := range ended {
		select {
		case err := <-over:
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("connection %q: %v, want a reset", mode, err)
			}
		case <-time.After(fwdtest.Limit):
			t.Errorf("connection %q is still open", mode)
		}
	}
	w.laptop.WaitStatus("no forward and no session", func(s fwdtest.Status) bool {
		return len(s.Forwards) == 0 && len(s.Sessions) == 0
	})
	w.homes[1].Cable().Heal()
	for range 4 {
		select {
		case err := <-heard:
			if err == nil {
				t.Error("an end at the NAS was told of a clean end")
			}
		case <-time.After(fwdtest.Limit):
			t.Error("an end at the NAS is still open")
		}
	}
}

// serveMode answers as the first byte says: in silence, by sending without end, or by reading.
func serveMode(c net.Conn) error {
	defer c.Close()
	var mode [1]byte
	if _, err := io.ReadFull(c, mode[:]); err != nil {
		return err
	}
	if _, err := c.Write(mode[:]); err != nil {
		return err
	}
	if mode[0] == 'd' {
		_, err := io.Copy(c, fwdtest.Pattern(2))
		return err
	}
	_, err := io.Copy(io.Discard, c)
	if mode[0] == 'h' && err == nil {
		_, err = io.Copy(c, fwdtest.Pattern(2)) // ends with the reset
	}
	return err
}
