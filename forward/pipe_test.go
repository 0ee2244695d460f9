package forward

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// errReset is what both ends of a memory pair read and write after a Reset.
var errReset = errors.New("memory connection reset")

// newMemPair gives a connection in memory with half-close and reset, as a session has
// them. (net.Pipe has neither.)
func newMemPair() (*memConn, *memConn) {
	ab, ba := newMemQueue(), newMemQueue()
	return &memConn{r: ba, w: ab}, &memConn{r: ab, w: ba}
}

type memConn struct{ r, w *memQueue }

func (c *memConn) Read(b []byte) (int, error)         { return c.r.read(b) }
func (c *memConn) Write(b []byte) (int, error)        { return c.w.write(b) }
func (c *memConn) CloseWrite() error                  { c.w.end(io.EOF); return nil }
func (c *memConn) Reset() error                       { c.w.end(errReset); c.r.end(errReset); return nil }
func (c *memConn) LocalAddr() net.Addr                { return memAddr{} }
func (c *memConn) RemoteAddr() net.Addr               { return memAddr{} }
func (c *memConn) SetReadDeadline(t time.Time) error  { c.r.setDeadline(&c.r.readBy, t); return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { c.w.setDeadline(&c.w.writeBy, t); return nil }

func (c *memConn) Close() error {
	c.w.end(io.EOF)
	c.r.end(net.ErrClosed)
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

type memAddr struct{}

func (memAddr) Network() string { return "memory" }
func (memAddr) String() string  { return "memory" }

// A memQueue is one direction: at most memWindow bytes wait in it.
type memQueue struct {
	mu              sync.Mutex
	changed         sync.Cond
	buf             []byte
	off             int
	err             error // what follows the bytes; errReset overtakes them
	readBy, writeBy time.Time
}

const memWindow = 256 << 10

func newMemQueue() *memQueue {
	q := &memQueue{}
	q.changed.L = &q.mu
	return q
}

func (q *memQueue) read(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.err != nil && q.err != io.EOF:
			return 0, q.err
		case q.off < len(q.buf):
			n := copy(b, q.buf[q.off:])
			if q.off += n; q.off == len(q.buf) {
				q.buf, q.off = q.buf[:0], 0
			}
			q.changed.Broadcast()
			return n, nil
		case q.err != nil:
			return 0, q.err
		case passed(q.readBy):
			return 0, os.ErrDeadlineExceeded
		}
		q.changed.Wait()
	}
}

func (q *memQueue) write(b []byte) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		switch {
		case q.err == io.EOF:
			return n, net.ErrClosed
		case q.err != nil:
			return n, q.err
		case len(b) == 0:
			return n, nil
		case passed(q.writeBy):
			return n, os.ErrDeadlineExceeded
		}
		if room := memWindow - (len(q.buf) - q.off); room > 0 {
			m := min(room, len(b))
			q.buf = append(q.buf, b[:m]...)
			n, b = n+m, b[m:]
			q.changed.Broadcast()
			continue
		}
		q.changed.Wait()
	}
}

func (q *memQueue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil || err == errReset && q.err == io.EOF {
		q.err = err
	}
	q.changed.Broadcast()
}

func (q *memQueue) setDeadline(field *time.Time, t time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	*field = t
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), func() {
			q.mu.Lock() // the waiter has either not looked yet or waits
			defer q.mu.Unlock()
			q.changed.Broadcast()
		})
	}
	q.changed.Broadcast()
}

func passed(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }
