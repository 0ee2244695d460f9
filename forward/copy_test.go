package forward

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTCPPair gives the two ends of a loopback TCP connection.
func newTCPPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	ln := newLocalListener(t)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func newLocalListener(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// newCopied gives a client and a server with a Copy between them: TCP on the client's
// side, a session-like memory pair on the server's.
func newCopied(t *testing.T) (client *net.TCPConn, server *memConn, result <-chan copyResult) {
	client, near := newTCPPair(t)
	far, server := newMemPair()
	return client, server, startCopy(t, near, far)
}

type copyResult struct {
	aToB, bToA int64
	err        error
}

func startCopy(t *testing.T, a, b Conn) <-chan copyResult {
	done := make(chan copyResult, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		var r copyResult
		r.aToB, r.bToA, r.err = Copy(a, b)
		done <- r
	}()
	t.Cleanup(func() {
		Reset(a)
		Reset(b)
		<-finished
	})
	return done
}

func TestCopyDeliversAnswerAfterClientHalfClose(t *testing.T) {
	client, server, result := newCopied(t)
	client.Write([]byte("question"))
	client.CloseWrite()
	if got, err := io.ReadAll(server); err != nil || string(got) != "question" {
		t.Fatalf("server read %q, %v", got, err)
	}
	server.Write([]byte("answer"))
	server.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("client read %q, %v", got, err)
	}
	if r := <-result; r != (copyResult{8, 6, nil}) {
		t.Fatalf("Copy = %+v", r)
	}
}

func TestCopyDeliversQuestionAfterServerHalfClose(t *testing.T) {
	client, server, result := newCopied(t)
	server.Write([]byte("banner"))
	server.CloseWrite()
	if got, err := io.ReadAll(client); err != nil || string(got) != "banner" {
		t.Fatalf("client read %q, %v", got, err)
	}
	client.Write([]byte("late"))
	client.CloseWrite()
	if got, err := io.ReadAll(server); err != nil || string(got) != "late" {
		t.Fatalf("server read %q, %v", got, err)
	}
	if r := <-result; r.err != nil {
		t.Fatal(r.err)
	}
}

func TestCopyTurnsSessionResetIntoTCPReset(t *testing.T) {
	client, server, result := newCopied(t)
	server.Write([]byte("half of a fi"))
	readExactly(t, client, 12)
	server.Reset()
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("client read %d, %v, want a reset", n, err)
	}
	if r := <-result; !errors.Is(r.err, errReset) {
		t.Fatalf("Copy's error is %v", r.err)
	}
}

func TestCopyTurnsTCPResetIntoSessionReset(t *testing.T) {
	client, server, result := newCopied(t)
	client.Write([]byte("x"))
	readExactly(t, server, 1)
	Reset(client)
	if n, err := server.Read(make([]byte, 1)); err != errReset {
		t.Fatalf("server read %d, %v, want a reset", n, err)
	}
	if r := <-result; !errors.Is(r.err, syscall.ECONNRESET) {
		t.Fatalf("Copy's error is %v", r.err)
	}
}

// A reset that arrives after one direction has ended cleanly is still passed on.
func TestCopyResetsAfterHalfClose(t *testing.T) {
	client, server, result := newCopied(t)
	client.CloseWrite()
	if _, err := server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	server.Reset()
	if n, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("client read %d, %v, want a reset", n, err)
	}
	if r := <-result; r.err == nil {
		t.Fatal("Copy called a reset a clean end")
	}
}

// telling is a session that tells of its loss by itself.
type telling struct {
	*memConn
	after atomic.Pointer[func(error)]
}

func (c *telling) AfterLoss(f func(error)) (stop func() bool) {
	c.after.Store(&f)
	return func() bool { return c.after.Swap(nil) != nil }
}

func (c *telling) lose(err error) { (*c.after.Swap(nil))(err) }

// The far side has ended its direction, the target reads all of it and is silent: no Read or Write would ever tell
// that the session is lost.
func TestCopyWithASilentTargetEndsWhenTheSessionIsLost(t *testing.T) {
	near, target := newTCPPair(t)
	mem, far := newMemPair()
	session := &telling{memConn: mem}
	far.Write([]byte("the last words"))
	result := startCopy(t, session, near)
	readExactly(t, target, 14)
	far.CloseWrite()
	if n, err := target.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the target read %d, %v", n, err)
	}
	session.lose(errReset)
	if r := <-result; r.err != errReset || r.aToB != 14 {
		t.Fatalf("Copy returned %+v", r)
	}
	if _, err := target.Write([]byte("x")); err == nil {
		t.Fatal("the target may still write")
	}
}

// What came before the loss is still delivered.
func TestCopyDeliversWhatCameBeforeTheLoss(t *testing.T) {
	near, target := newTCPPair(t)
	mem, far := newMemPair()
	session := &telling{memConn: mem}
	far.Write(make([]byte, memWindow))
	far.CloseWrite()
	result := startCopy(t, session, near)
	readExactly(t, target, 1)
	session.lose(errReset)
	if n, _ := io.Copy(io.Discard, target); n != memWindow-1 {
		t.Errorf("the target read %d bytes", n)
	}
	if r := <-result; r.err != errReset {
		t.Errorf("Copy returned %+v", r)
	}
}

// A server that answers and stops reading in the middle of an upload is heard.
func TestCopyDeliversAnswerToRefusedUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, near := newMemPair()
		far, server := newMemPair()
		result := make(chan copyResult, 1)
		go func() {
			var r copyResult
			r.aToB, r.bToA, r.err = Copy(near, far)
			result <- r
		}()
		server.Write([]byte("413 too large"))
		server.w.end(io.EOF)
		synctest.Wait() // the answer is on its way before the upload fails
		server.r.end(net.ErrClosed)
		client.Write([]byte("upload"))
		if got, err := io.ReadAll(client); string(got) != "413 too large" || err != nil {
			t.Fatalf("client read %q, %v", got, err)
		}
		if r := <-result; r.err == nil {
			t.Fatal("Copy called a refused upload a clean end")
		}
		if _, err := client.Read(make([]byte, 1)); err != errReset {
			t.Fatalf("client read %v after the end, want a reset", err)
		}
	})
}

// A side that takes no more bytes and sends none either holds a Copy for drainTime.
func TestCopyDrainEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, near := newMemPair()
		far, server := newMemPair()
		start := time.Now()
		server.r.end(net.ErrClosed)
		client.Write([]byte("upload"))
		if _, _, err := Copy(near, far); err == nil {
			t.Fatal("Copy called a refused upload a clean end")
		}
		if d := time.Since(start); d != drainTime {
			t.Fatalf("Copy took %v, want %v", d, drainTime)
		}
	})
}

// A failure must not wait for the direction that is blocked on a full window.
func TestCopyEndsWhenOneSideIsStuck(t *testing.T) {
	client, near := newTCPPair(t)
	far, server := newMemPair()
	result := startCopy(t, near, far)
	go func() { client.Write(make([]byte, 8<<20)) }() // ends by the reset: nobody reads server
	readExactly(t, server, 1)
	server.Reset()
	if r := <-result; r.err == nil {
		t.Fatal("Copy called a reset a clean end")
	}
}

func TestCopyIsExactBothWaysAtOnce(t *testing.T) {
	client, server, result := newCopied(t)
	up, down := noise(5<<20+1), noise(3<<20+7)
	go func() { writeUnevenly(client, up); client.CloseWrite() }()
	go func() { writeUnevenly(server, down); server.CloseWrite() }()
	gotUp := make(chan []byte, 1)
	go func() { b, _ := io.ReadAll(server); gotUp <- b }()
	gotDown, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(gotDown, down) {
		t.Errorf("client got %d of %d bytes, %v", len(gotDown), len(down), err)
	}
	if b := <-gotUp; !bytes.Equal(b, up) {
		t.Errorf("server got %d of %d bytes", len(b), len(up))
	}
	if r := <-result; r != (copyResult{int64(len(up)), int64(len(down)), nil}) {
		t.Errorf("Copy = %+v", r)
	}
}

// Idle connections hold the smallest buffer, however fast they once were, and go on.
func TestBigBufferGoesBackWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src, w := newMemPair()
		p := &pair{}
		buf := newBuffer()
		defer buf.free()
		for range 10 {
			w.Write(make([]byte, len(buf.bytes())))
			n, err := p.read(src, buf)
			if err != nil {
				t.Fatal(err)
			}
			buf.fit(n)
		}
		if got, want := len(buf.bytes()), bufferSizes[len(bufferSizes)-1]; got != want {
			t.Fatalf("buffer grew to %d, want %d", got, want)
		}
		time.AfterFunc(time.Hour, func() {
			synctest.Wait() // for the reader, which only waits by now
			if got := len(buf.bytes()); got != bufferSizes[0] {
				t.Errorf("idle buffer has %d bytes, want %d", got, bufferSizes[0])
			}
			w.Write([]byte("awake"))
		})
		if n, err := p.read(src, buf); n != 5 || err != nil {
			t.Fatalf("read after an hour: %d, %v", n, err)
		}
	})
}

func TestBufferShrinksWhenReadsStaySmall(t *testing.T) {
	buf := newBuffer()
	defer buf.free()
	for range len(bufferSizes) {
		buf.fit(len(buf.bytes()))
	}
	for range shrinkAfter * len(bufferSizes) {
		buf.fit(1)
	}
	if got := len(buf.bytes()); got != bufferSizes[0] {
		t.Fatalf("buffer has %d bytes after many small reads, want %d", got, bufferSizes[0])
	}
}

// A kernel time-out is a dead connection, not a deadline of ours.
func TestKernelTimeoutIsNoDeadline(t *testing.T) {
	if isDeadline(&net.OpError{Op: "read", Err: syscall.ETIMEDOUT}) {
		t.Fatal("ETIMEDOUT taken for a deadline")
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func writeUnevenly(w io.Writer, b []byte) {
	for size := 1; len(b) > 0; size = size*3%70001 + 1 {
		n := min(size, len(b))
		if _, err := w.Write(b[:n]); err != nil {
			return
		}
		b = b[n:]
	}
}

func readExactly(t *testing.T, r io.Reader, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return b
}
