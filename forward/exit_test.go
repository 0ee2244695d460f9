package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward/session"
)

const alice = peer.ID("alice")

// A testOffer is a session offered to an exit; answer is closed once there is one.
type testOffer struct {
	service string
	near    *memConn
	answer  chan session.Code
}

func (o *testOffer) Peer() peer.ID               { return alice }
func (o *testOffer) Service() string             { return o.service }
func (o *testOffer) Accept() (Conn, error)       { o.answer <- session.OK; return o.near, nil }
func (o *testOffer) Refuse(c session.Code) error { o.answer <- c; return nil }

// newExit serves exit, and gives a function that offers it a session for a service and
// returns the far end and the answer.
func newExit(t *testing.T, exit *Exit) (open func(service string) (*memConn, session.Code), stop func() error) {
	offers := make(chan offer)
	stop = serve(t, func(ctx context.Context) error {
		return exit.serve(ctx, func(ctx context.Context) (offer, error) {
			select {
			case o := <-offers:
				return o, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
	})
	return func(service string) (*memConn, session.Code) {
		near, far := newMemPair()
		o := &testOffer{service, near, make(chan session.Code, 1)}
		offers <- o
		return far, <-o.answer
	}, stop
}

// echoOnce accepts one connection, reads it to its end, and answers with the same.
func echoOnce(ln net.Listener) {
	c, err := ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	b, _ := io.ReadAll(c)
	c.Write(b)
}

func TestExitCarriesToItsTarget(t *testing.T) {
	tcp := newLocalListener(t)
	unix, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	for _, ln := range []net.Listener{tcp, unix} {
		go echoOnce(ln)
		target := Target{Network: ln.Addr().Network(), Address: ln.Addr().String()}
		exit := &Exit{Lookup: func(p peer.ID, service string) (Target, error) {
			if p != alice || service != "echo" {
				t.Errorf("asked for %q, %q", p, service)
			}
			return target, nil
		}}
		open, stop := newExit(t, exit)
		c, code := open("echo")
		if code != session.OK {
			t.Fatalf("%s: answered %v", target, code)
		}
		c.Write([]byte("hello"))
		c.CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
			t.Fatalf("%s: read %q, %v", target, b, err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExitRefusesWithTheRightCode(t *testing.T) {
	closed := newLocalListener(t)
	closed.Close()
	exit := &Exit{
		Lookup: func(p peer.ID, service string) (Target, error) {
			switch service {
			case "closed":
				return Target{Network: "tcp", Address: closed.Addr().String()}, nil
			case "nosocket":
				return Target{Network: "unix", Address: filepath.Join(t.TempDir(), "nothing")}, nil
			}
			return Target{}, fmt.Errorf("%s may not use %q", p, service)
		},
	}
	open, _ := newExit(t, exit)
	for service, want := range map[string]session.Code{
		"secret":   session.Denied,
		"closed":   session.Refused,
		"nosocket": session.Refused,
	} {
		if _, code := open(service); code != want {
			t.Errorf("%s: answered %v, want %v", service, code, want)
		}
	}
}

func TestRefusalCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want session.Code
	}{
		{syscall.ECONNREFUSED, session.Refused},
		{syscall.EHOSTUNREACH, session.Refused},
		{syscall.ETIMEDOUT, session.Timeout},
		{context.DeadlineExceeded, session.Timeout},
		{syscall.EMFILE, session.Overload},
		{syscall.EADDRNOTAVAIL, session.Overload},
		{errors.New("unheard of"), session.Refused},
	} {
		if got := refusal(&net.OpError{Op: "dial", Err: c.err}); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestAPeerThatIsRefusedAThousandTimesHasALineASecond(t *testing.T) {
	for reason, exit := range map[string]*Exit{
		"not yours": {Lookup: func(peer.ID, string) (Target, error) { return Target{}, errors.New("not yours") }},
		"away": {
			Lookup: func(peer.ID, string) (Target, error) { return Target{Network: "tcp"}, nil },
			Dial:   func(context.Context, Target) (Conn, error) { return nil, errors.New("away") },
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var log syncBuffer
			exit.Log = slog.New(slog.NewTextHandler(&log, nil))
			open, stop := newExit(t, exit)
			for range 1000 {
				open(strings.Repeat("é", 120))
			}
			time.Sleep(5 * time.Second)
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			if len(lines) != 2 || !strings.Contains(lines[0], reason) || !strings.HasSuffix(lines[1], " left_out=998") {
				t.Errorf("log:\n%s\nwant one line at once, and one that counts the others", log.String())
			}
			if n := strings.Count(lines[0], "é"); n > 40 {
				t.Errorf("%d letters of a name that nobody has stand in the log", n)
			}
			open("later")
			synctest.Wait()
			if n := strings.Count(log.String(), "\n"); n != 3 {
				t.Errorf("%d lines: one that comes later is written at once", n)
			}
			stop()
		})
	}
}

// A target that does not answer is given up after TargetTimeout.
func TestExitGivesUpASilentTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		exit := &Exit{
			Lookup: func(peer.ID, string) (Target, error) { return Target{}, nil },
			Dial: func(ctx context.Context, _ Target) (Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			},
		}
		near, _ := newMemPair()
		o := &testOffer{"slow", near, make(chan session.Code, 1)}
		start := time.Now()
		exit.serveOffer(t.Context(), logger(nil), o)
		if code, d := <-o.answer, time.Since(start); code != session.Timeout || d != TargetTimeout {
			t.Errorf("answered %v after %v", code, d)
		}
	})
}

func TestExitEndsItsSessions(t *testing.T) {
	ln := newLocalListener(t)
	exit := &Exit{Lookup: func(peer.ID, string) (Target, error) { return Target{Network: "tcp", Address: ln.Addr().String()}, nil }}
	open, stop := newExit(t, exit)
	far, code := open("x")
	if code != session.OK {
		t.Fatal(code)
	}
	target, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	wantReset(t, target)
	if _, err := far.Read(make([]byte, 1)); err != errReset {
		t.Fatalf("peer read %v, want a reset", err)
	}
}

// TestExitRefusesAPeerBeyondItsShareBeforeItDials, and the exits together beyond what all may have.
func TestExitRefusesAPeerBeyondItsShareBeforeItDials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room, dialled := NewRoom(3, 2), 0
		exit := &Exit{
			Room:   room,
			Lookup: func(peer.ID, string) (Target, error) { return Target{}, nil },
			Dial: func(context.Context, Target) (Conn, error) {
				dialled++
				near, _ := newMemPair()
				return near, nil
			},
		}
		open, _ := newExit(t, exit)
		first, _ := open("web")
		for i, want := range []session.Code{session.OK, session.Overload, session.Overload} {
			if _, code := open("web"); code != want {
				t.Errorf("session %d is answered %v, want %v", i+2, code, want)
			}
		}
		if dialled != 2 {
			t.Errorf("dialled %d times for 2 sessions", dialled)
		}
		// Who has its share has taken the room of nobody else.
		leave, err := room.take("bob")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := room.take("carol"); err == nil {
			t.Error("there is room for more than all")
		}
		leave()
		first.Reset()
		synctest.Wait()
		if _, code := open("web"); code != session.OK {
			t.Error("the place of one that has ended is not free again:", code)
		}
	})
}
