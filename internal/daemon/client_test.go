package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestCommandOfNamesTheRequest(t *testing.T) {
	for want, request := range map[string]any{
		"expose":       ExposeRequest{},
		"owner-export": OwnerExportRequest{},
		"ls":           LsRequest{},
	} {
		if got := commandOf(request); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestDialWithoutADaemonSaysSoAtOnce(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := Dial(ctx, Home{State: t.TempDir()})
	if !errors.Is(err, ErrNoDaemon) || failureOf(err).Exit != ExitNoDaemon {
		t.Errorf("got %v, want ErrNoDaemon", err)
	}
}

func TestALineOfTheControlAPIIsBounded(t *testing.T) {
	var req Request
	r := bufio.NewReader(strings.NewReader(`{"command":"` + strings.Repeat("x", 1<<20) + `"}` + "\n"))
	if err := readLine(r, 1<<10, &req); err == nil {
		t.Error("a line of 1 MiB was read with a limit of 1 KiB")
	}
}

// A deadline of an event's would end the session of `connect -`, which writes to the same connection after it.
func TestAnEventLeavesNoDeadline(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go io.Copy(io.Discard, far)
	c := &deadlineConn{Conn: near}
	(&eventWriter{conn: c}).event(Event{Event: "open"})
	if c.set != 2 || !c.last.IsZero() {
		t.Errorf("set %d times, and left at %v", c.set, c.last)
	}
}

type deadlineConn struct {
	net.Conn
	set  int
	last time.Time
}

func (c *deadlineConn) SetWriteDeadline(t time.Time) error { c.set++; c.last = t; return nil }

// After an upgrade the daemon of before has to be ended by the new binary.
func TestADaemonOfAnotherVersionCanBeStopped(t *testing.T) {
	home := Home{State: shortTemp(t)}
	l, err := net.Listen("unix", home.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan Request, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, `{"api":%d,"fwd":"9.0","pid":1}`+"\n", APIVersion+1)
			var req Request
			if readLine(bufio.NewReader(conn), maxRequest, &req) == nil {
				asked <- req
				fmt.Fprintln(conn, `{"event":"done"}`)
			}
			conn.Close()
		}
	}()
	if _, err := Dial(t.Context(), home); failureOf(err).Code != "version" || !strings.Contains(failureOf(err).Hint, "fwd stop") {
		t.Errorf("an ordinary command: %v", err)
	}
	if err := Stop(t.Context(), home); err != nil {
		t.Fatal(err)
	}
	if req := <-asked; req.Command != "stop" {
		t.Errorf("asked for %q", req.Command)
	}
}

func TestALongHomeStillHasASocket(t *testing.T) {
	home := Home{State: "/" + strings.Repeat("long/", 40)}
	if n := len(home.Socket()); n > maxSocketPath {
		t.Errorf("socket path of %d bytes", n)
	}
}

// FuzzRequest: whatever a client writes, the daemon answers or hangs up.
func FuzzRequest(f *testing.F) {
	f.Add(`{"api":1,"command":"expose","args":{"target":"22"}}`)
	f.Add(`{"command":"connect","args":{"local":"-"}}`)
	f.Add(`{"command":"allow","args":[]}`)
	f.Fuzz(func(t *testing.T, line string) {
		var req Request
		if readLine(bufio.NewReader(strings.NewReader(line+"\n")), maxRequest, &req) != nil {
			return
		}
		with(req, func(ExposeRequest) error { return nil })
		with(req, func(ConnectRequest) error { return nil })
		with(req, func(InviteRequest) error { return nil })
	})
}
