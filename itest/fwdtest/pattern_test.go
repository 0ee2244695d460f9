//go:build linux

package fwdtest

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"fwd/itest/lab"
)

func TestMain(m *testing.M) { Main(m) }

func TestTransferComparesBothDirections(t *testing.T) {
	l := lab.New(t)
	nas, far := l.Public("nas", "7.0.0.10"), l.Public("far", "7.0.0.11")
	s := ServePattern(t, nas, "7.0.0.10:9000")
	for _, load := range []Load{{Up: 3 << 20, Down: 5 << 20}, {Up: 0, Down: 1}, {Up: 1}, {}} {
		if _, err := s.TransferFrom(far, s.Addr(), load); err != nil {
			t.Errorf("%d up, %d down: %v", load.Up, load.Down, err)
		}
	}
}

func TestTransferEndsWhenToldTo(t *testing.T) {
	l := lab.New(t)
	nas, far := l.Public("nas", "7.0.0.10"), l.Public("far", "7.0.0.11")
	s := ServePattern(t, nas, "7.0.0.10:9000")
	enough := make(chan struct{})
	end := sync.OnceFunc(func() { close(enough) })
	r, err := s.TransferFrom(far, s.Addr(), Load{Up: 1 << 40, Down: 1 << 40, Until: enough, Progress: func(n int64) {
		if n > 1<<20 {
			end()
		}
	}})
	if err != nil {
		t.Errorf("%+v: %v", r, err)
	}
}

func TestTransferNoticesEachFault(t *testing.T) {
	const size = 1 << 20
	for name, tc := range map[string]struct {
		fault func(from, to *net.TCPConn)
		want  string
	}{
		"a byte changed": {func(from, to *net.TCPConn) { copyWith(from, to, 1000, func(b []byte) []byte { b[0] ^= 1; return b }) }, "byte 1000 is wrong"},
		"a byte lost":    {func(from, to *net.TCPConn) { copyWith(from, to, 1000, func(b []byte) []byte { return nil }) }, "is wrong"},
		"a byte doubled": {func(from, to *net.TCPConn) {
			copyWith(from, to, 1000, func(b []byte) []byte { return append(b, b...) })
		}, "is wrong"},
		"early end": {func(from, to *net.TCPConn) { _, _ = io.CopyN(to, from, 1000); to.CloseWrite() }, "after 1000 of"},
		"a reset":   {func(from, to *net.TCPConn) { _, _ = io.CopyN(to, from, 1000); to.SetLinger(0); to.Close() }, "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.New(t)
			host := l.Public("host", "7.0.0.10")
			s := ServePattern(t, host, "127.0.0.1:9000")
			ln := listen(t, host, "127.0.0.1:9001")
			serve(t, ln, func(client net.Conn) {
				server, err := host.Dial(t.Context(), "tcp", s.Addr())
				if err != nil {
					return
				}
				defer server.Close()
				var wg sync.WaitGroup
				wg.Go(func() { _, _ = io.Copy(server, client); _ = server.(*net.TCPConn).CloseWrite() })
				tc.fault(server.(*net.TCPConn), client.(*net.TCPConn))
				client.(*net.TCPConn).CloseRead()
				_, _ = io.Copy(io.Discard, server)
				wg.Wait()
			})
			_, err := s.TransferFrom(host, ln.Addr().String(), Load{Up: 10, Down: size, Until: make(chan struct{})})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// copyWith copies until end of file and treats the byte at offset.
func copyWith(from, to *net.TCPConn, offset int64, treat func([]byte) []byte) {
	_, _ = io.CopyN(to, from, offset)
	one := make([]byte, 1)
	_, _ = io.ReadFull(from, one)
	_, _ = to.Write(treat(one))
	_, _ = io.Copy(to, from)
	_ = to.CloseWrite()
}
