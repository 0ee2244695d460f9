//go:build linux

package itest

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// While there is no path at all: what status tells, what can be ended, what waits and what does not.
func TestDetachedConnectionsAreToldHeldAndEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	echo := fwdtest.ServeEcho(t, w.nas.Host, "127.0.0.1:9001")
	w.nas.Start("expose", echo.String(), "--name", "long").Wait("exposed")
	w.nas.Start("expose", echo.String(), "--name", "short", "--hold", "2s").Wait("exposed")
	long := w.laptop.Start("connect", "long", "127.0.0.1:2223").Wait("listening").Local
	short := w.laptop.Start("connect", "short", "127.0.0.1:2224").Wait("listening").Local
	dial := func(local string) net.Conn {
		t.Helper()
		conn, err := w.laptop.Host.Dial(t.Context(), "tcp", local)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(2 * fwdtest.Limit))
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	ask := func(conn net.Conn) error {
		_, err := conn.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		return err
	}
	begin := func(local string) net.Conn {
		t.Helper()
		conn := dial(local)
		if err := ask(conn); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	kept, ended, given := begin(long), begin(long), begin(short)
	w.homes[1].Cable().Cut()
	s := w.laptop.WaitStatus("three detached sessions", func(s fwdtest.Status) bool {
		n := 0
		for _, x := range s.Sessions {
			if x.State == "detached" {
				n++
			}
		}
		return n == 3
	})
	for _, x := range s.Sessions {
		if !strings.Contains(x.WaitsFor, "nas-box") || x.Path != "" {
			t.Errorf("a detached session waits for %q, path %q", x.WaitsFor, x.Path)
		}
	}
	contains(t, w.laptop.Must("status"), "waits for")
	w.nas.WaitStatus("the service with --hold 2s has given its session up", func(s fwdtest.Status) bool {
		n := 0
		for _, x := range s.Sessions {
			if x.Service == "short" {
				n++
			}
		}
		return n == 0
	})

	// One is ended by its ID, at once and with a reset, path or no path.
	id := sessionAt(t, s, "long", 1)
	w.laptop.Must("disconnect", "--session", id[:8])
	ended.SetDeadline(time.Now().Add(fwdtest.Limit))
	if err := ask(ended); err == nil || strings.Contains(err.Error(), "timeout") || err == io.EOF {
		t.Errorf("the ended connection: %v, want a reset", err)
	}
	if r := w.laptop.Run("disconnect", "--session", "ffffffffffffffff"); r.Code != 3 {
		t.Errorf("no such session: exit %d, want 3", r.Code)
	}

	// A new connection waits for the path instead of being refused.
	late := dial(long)
	answered := make(chan error, 1)
	go func() { answered <- ask(late) }() // ends with the connection
	select {
	case err := <-answered:
		t.Fatalf("answered without a path: %v", err)
	case <-time.After(2 * time.Second):
	}
	w.homes[1].Cable().Heal()
	if err := <-answered; err != nil {
		t.Errorf("the connection that waited: %v", err)
	}
	if err := ask(kept); err != nil {
		t.Errorf("the connection that was held: %v", err)
	}
	if err := ask(given); err == nil {
		t.Error("the connection that was given up lives")
	}
}

// sessionAt is the ID of the nth session of a service, oldest first.
func sessionAt(t *testing.T, s fwdtest.Status, service string, n int) string {
	t.Helper()
	for _, x := range s.Sessions {
		if x.Service != service {
			continue
		}
		if n == 0 {
			return x.ID
		}
		n--
	}
	t.Fatalf("not so many sessions of %s: %+v", service, s.Sessions)
	return ""
}
