package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"fwd/forward/session"
)

// serve runs f until the test ends, and fails the test if it does not end then.
func serve(t testing.TB, f func(context.Context) error) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			t.Error("Serve did not end")
			return nil
		}
	})
	t.Cleanup(func() { stop() })
	return stop
}

func dialTCP(t testing.TB, addr net.Addr) *net.TCPConn {
	t.Helper()
	c, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read %d, %v, want a reset", n, err)
	}
}

// wantRefusal dials and wants the connection reset, be it before the dial returns.
func wantRefusal(t *testing.T, addr net.Addr) {
	t.Helper()
	c, err := net.Dial("tcp", addr.String())
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantReset(t, c)
}

func TestEntryWaitsForThePath(t *testing.T) {
	ln := newLocalListener(t)
	path := make(chan struct{})
	far, server := newMemPair()
	entry := &Entry{Listener: ln, Dial: func(ctx context.Context) (Conn, error) {
		select {
		case <-path:
			return far, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	serve(t, entry.Serve)
	client := dialTCP(t, ln.Addr())
	client.Write([]byte("early"))
	close(path)
	readExactly(t, server, 5)
}

func TestEntryResetsWhenThePathNeverComes(t *testing.T) {
	ln := newLocalListener(t)
	entry := &Entry{Listener: ln, Wait: time.Millisecond, Dial: func(ctx context.Context) (Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	serve(t, entry.Serve)
	wantRefusal(t, ln.Addr())
}

// A refusal comes with the first read of a session that was opened without waiting.
func TestEntryAnswersRefusalWithResetAndLogsIt(t *testing.T) {
	ln := newLocalListener(t)
	var log syncBuffer
	entry := &Entry{
		Listener: ln,
		Log:      slog.New(slog.NewTextHandler(&log, nil)),
		Dial: func(context.Context) (Conn, error) {
			return refusedConn{&net.TCPConn{}}, nil
		},
	}
	stop := serve(t, entry.Serve)
	wantRefusal(t, ln.Addr())
	stop()
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "denied") {
		t.Errorf("log:\n%s\nwant one line with the reason", got)
	}
}

// refusedConn is a session whose offer was denied.
type refusedConn struct{ Conn }

func (refusedConn) Read([]byte) (int, error) {
	return 0, &session.RefusedError{Service: "nas", Code: session.Denied}
}
func (refusedConn) Reset() error { return nil }

func TestEntryEndsItsSessions(t *testing.T) {
	ln := newLocalListener(t)
	far, server := newMemPair()
	var ended atomic.Bool
	entry := &Entry{
		Listener: ln,
		Dial:     func(context.Context) (Conn, error) { return far, nil },
		OnSession: func(net.Conn, Conn) func(int64, int64, error) {
			return func(sent, received int64, err error) {
				ended.Store(sent == 2 && received == 0 && err != nil)
			}
		},
	}
	stop := serve(t, entry.Serve)
	client := dialTCP(t, ln.Addr())
	client.Write([]byte("hi"))
	readExactly(t, server, 2)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	wantReset(t, client)
	if _, err := server.Read(make([]byte, 1)); err != errReset {
		t.Fatalf("server read %v, want a reset", err)
	}
	if !ended.Load() {
		t.Error("the session's end was not told with its counts")
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener is still open")
	}
}

func TestEntryTellsWhenItsListenerDies(t *testing.T) {
	ln := newLocalListener(t)
	ln.Close()
	if err := (&Entry{Listener: ln}).Serve(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("Serve = %v", err)
	}
}

// Without free descriptors the accept loop waits instead of spinning, says so once, and
// recovers.
func TestEntryBacksOffWithoutDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		ln := &starvedListener{failures: 10, closed: make(chan struct{})}
		dialled := make(chan struct{})
		entry := &Entry{
			Listener: ln,
			Log:      slog.New(slog.NewTextHandler(&log, nil)),
			Dial: func(context.Context) (Conn, error) {
				close(dialled)
				return nil, errors.New("enough for this test")
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		start := time.Now()
		go func() { done <- entry.Serve(ctx) }()
		<-dialled
		// 5+10+20+40+80+160+320+640+1000+1000 ms
		if d := time.Since(start); d != 3275*time.Millisecond {
			t.Errorf("recovered after %v", d)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(log.String(), "cannot accept"); n != 1 {
			t.Errorf("complained %d times", n)
		}
	})
}

// TestACrowdWashesNoLogAway: whoever reaches a port can have its connections fail as often as it likes.
func TestACrowdWashesNoLogAway(t *testing.T) {
	const crowd = 200
	fails := errors.New("away")
	entries := map[string]func(l *visits, log *slog.Logger) func(context.Context) error{
		"no session": func(l *visits, log *slog.Logger) func(context.Context) error {
			return (&Entry{Listener: l, Log: log, Dial: func(context.Context) (Conn, error) { return nil, fails }}).Serve
		},
		"refused": func(l *visits, log *slog.Logger) func(context.Context) error {
			return (&Entry{Listener: l, Log: log, Dial: func(context.Context) (Conn, error) {
				near, _ := newMemPair()
				return refusedConn{near}, nil
			}}).Serve
		},
		"SOCKS": func(l *visits, log *slog.Logger) func(context.Context) error {
			return (&SOCKSEntry{Listener: l, Log: log, Dial: func(context.Context, string, int) (Conn, error) { return nil, fails }}).Serve
		},
	}
	for name, entry := range entries {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log syncBuffer
				l := newVisits()
				serve(t, entry(l, slog.New(slog.NewTextHandler(&log, nil))))
				for range crowd {
					c := l.visit("192.0.2.1")
					if name == "SOCKS" {
						c.Write(append([]byte{5, 1, 0}, connectRequest("nas.test", 22)...))
					}
				}
				time.Sleep(2 * time.Second)
				text := log.String()
				if n := strings.Count(text, "level=WARN"); n != 2 || !strings.Contains(text, fmt.Sprintf("left_out=%d", crowd-2)) {
					t.Errorf("%d lines in the log for %d connections:\n%.1000s", n, crowd, text)
				}
			})
		})
	}
}

type starvedListener struct {
	failures int
	closed   chan struct{}
	once     sync.Once
}

func (l *starvedListener) Accept() (net.Conn, error) {
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	if l.failures == 0 {
		l.failures--
		c, _ := newMemPair()
		return c, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}
func (l *starvedListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *starvedListener) Addr() net.Addr { return memAddr{} }

func TestEntryServesUnixSocket(t *testing.T) {
	local := Local{network: "unix", address: filepath.Join(t.TempDir(), "s")}
	ln, err := local.Listen()
	if err != nil {
		t.Fatal(err)
	}
	far, server := newMemPair()
	entry := &Entry{Listener: ln, Dial: func(context.Context) (Conn, error) { return far, nil }}
	serve(t, entry.Serve)
	c, err := net.Dial("unix", local.address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("q"))
	c.(*net.UnixConn).CloseWrite()
	if got, err := io.ReadAll(server); string(got) != "q" || err != nil {
		t.Fatalf("server read %q, %v", got, err)
	}
	server.Write([]byte("a"))
	server.CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "a" || err != nil {
		t.Fatalf("client read %q, %v", got, err)
	}
}

func TestListenTellsWhatWouldBeAvailable(t *testing.T) {
	ln := newLocalListener(t)
	_, err := LocalOf(ln).Listen()
	var le *ListenError
	if !errors.As(err, &le) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("listening twice: %v", err)
	}
	if !strings.Contains(le.Error(), ln.Addr().String()) || !strings.Contains(le.Hint, "another port") {
		t.Errorf("error %q, hint %q", le, le.Hint)
	}
}

func TestUnixSocketOfADeadProgramIsReplaced(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("sockets are no files with a mode there")
	}
	local := Local{network: "unix", address: filepath.Join(t.TempDir(), "s")}
	ln, err := local.Listen()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(local.address); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket's mode is %v, %v", info.Mode(), err)
	}
	if _, err := local.Listen(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("taking a live socket: %v", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	ln, err = local.Listen()
	if err != nil {
		t.Fatalf("replacing a dead socket: %v", err)
	}
	ln.Close()
}

func TestListenNeverRemovesWhatIsNoSocket(t *testing.T) {
	file := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(file, []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Local{network: "unix", address: file}).Listen(); err == nil {
		t.Error("listened on a file")
	}
	if b, err := os.ReadFile(file); string(b) != "dear" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// syncBuffer is a strings.Builder for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
