package node

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// fullRecord is a full TLS 1.3 record with any of its ciphers: 5 bytes of header, 16 KiB, 1 of type, 16 of tag. Such a
	// one is seldom the last of what is being written.
	fullRecord = 5 + 16<<10 + 1 + 16
	// atOnce is how many records are written together: those of one message of the multiplexer.
	atOnce = 4
	// recordWaits is how long a full record waits for the next: no longer than a write takes.
	recordWaits = 200 * time.Microsecond
)

// coalescing writes the TLS records of one message by one system call instead of one each.
type coalescing struct {
	manet.Conn

	mu    sync.Mutex
	buf   *[]byte // what waits; nil: nothing
	err   error   // of a write after its caller had left
	timer *time.Timer
}

// coalesce has c's records written together, unless c is a circuit whose way to the relay is QUIC: that cuts them into
// packets again, and with larger pieces carries a third less.
func coalesce(c manet.Conn) manet.Conn {
	if transportOf(c.RemoteMultiaddr()) == "quic-v1" {
		return c
	}
	return newCoalescing(c)
}

func newCoalescing(c manet.Conn) *coalescing {
	w := &coalescing{Conn: c}
	w.timer = time.AfterFunc(time.Hour, w.flush)
	w.timer.Stop()
	return w
}

// waiting holds the buffers, so that idle connections have none.
var waiting = sync.Pool{New: func() any {
	b := make([]byte, 0, atOnce*fullRecord)
	return &b
}}

func (c *coalescing) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	more := len(p) == fullRecord // more will follow at once
	switch {
	case c.buf == nil && !more:
		return c.Conn.Write(p)
	case c.buf == nil:
		c.buf = waiting.Get().(*[]byte)
		c.timer.Reset(recordWaits)
	}
	*c.buf = append(*c.buf, p...)
	if more && len(*c.buf) < atOnce*fullRecord {
		return len(p), nil
	}
	if c.flushLocked(); c.err != nil {
		return 0, c.err
	}
	return len(p), nil
}

// flush runs when no further record has come.
func (c *coalescing) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flushLocked()
}

func (c *coalescing) flushLocked() {
	if c.buf == nil {
		return
	}
	_, c.err = c.Conn.Write(*c.buf)
	*c.buf = (*c.buf)[:0]
	waiting.Put(c.buf)
	c.buf = nil
}

// Stat keeps a circuit's limits visible to the upgrader, which asks for them by this method.
func (c *coalescing) Stat() network.ConnStats {
	if s, ok := c.Conn.(network.ConnStat); ok {
		return s.Stat()
	}
	return network.ConnStats{}
}

func (c *coalescing) Close() error {
	c.timer.Stop()
	return c.Conn.Close()
}
