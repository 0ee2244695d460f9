package forward

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fwd/forward/session"
)

// listenBriefly listens on a unix socket that has room for two which are not accepted.
func listenBriefly(t *testing.T) *net.UnixListener {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: filepath.Join(t.TempDir(), "s")}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.UnixListener)
}

func TestAUnixTargetWithAFullBacklogIsWaitedFor(t *testing.T) {
	l := listenBriefly(t)
	target := Target{Network: "unix", Address: l.Addr().String()}
	for range 2 {
		c, err := net.Dial("unix", target.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := target.Dial(soon); err == nil || soon.Err() == nil || refusal(err) != session.Timeout {
		t.Errorf("with a full backlog: %v, answered %v, in time: %v", err, refusal(err), soon.Err())
	}
	const dials = 5
	results := make(chan error, dials)
	for range dials {
		go func() {
			c, err := target.Dial(t.Context())
			if err == nil {
				c.Close()
			}
			results <- err
		}()
	}
	l.SetDeadline(time.Now().Add(20 * time.Second))
	for range 2 + dials {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	for range dials {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}
