package session

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// What a session receives: lane.read → receive → a session's inbox → Conn.Read, and back the credit for it.

// demux is how far the lane's reader is in the peer's messages.
type demux struct {
	head  [muxHeader]byte
	have  int    // bytes of it
	left  int    // bytes of the message's data to come
	to    *Conn  // whose they are; nil: nobody's any more
	fin   bool   // they are the last
	waste []byte // where nobody's bytes go
}

// receive is the lane's reader: it ends with the lane.
func (l *lane) receive() {
	var d demux
	for {
		n, err := l.read(d.place())
		if err != nil {
			return
		}
		if err := l.took(&d, n); err != nil {
			l.link.failSoon(err)
			return
		}
	}
}

// place is where the next bytes belong.
func (d *demux) place() []byte {
	if d.left == 0 {
		return d.head[d.have:]
	}
	if d.to != nil {
		if p := d.to.place(d.left); p != nil {
			return p
		}
		d.to = nil
	}
	if d.waste == nil {
		d.waste = make([]byte, 4<<10)
	}
	return d.waste[:min(d.left, len(d.waste))]
}

// took takes note of n bytes that are in their place.
func (l *lane) took(d *demux, n int) error {
	if d.left > 0 {
		d.left -= n
		if d.to != nil {
			d.to.deliver(n, d.left == 0)
			if d.left == 0 && d.fin {
				d.to.farEnd()
			}
		}
		return nil
	}
	if d.have += n; d.have < muxHeader {
		return nil
	}
	d.have = 0
	m, err := parseMessage(&d.head)
	if err != nil {
		return err
	}
	switch m.kind {
	case muxPing:
		if m.flags&muxSYN != 0 {
			l.mu.Lock()
			l.controlLocked(message{muxPing, muxACK, 0, m.length}, false)
			l.mu.Unlock()
		}
		return nil
	case muxGoAway:
		return fmt.Errorf("%w: the peer's has ended", errMux)
	}
	c, err := l.of(m)
	if m.kind == muxData {
		d.left = int(m.length)
	}
	d.to, d.fin = c, m.flags&muxFIN != 0
	if c == nil || err != nil {
		return err
	}
	switch {
	case m.flags&muxRST != 0:
		d.to = nil
		c.farReset(m)
	case m.kind == muxData:
		if err := c.expect(m.length); err != nil {
			return err
		}
	}
	if d.fin && d.left == 0 && d.to != nil {
		c.farEnd()
	}
	return nil
}

// of gives the session that m is for, beginning it if m does; nil: there is none, or none any more.
func (l *lane) of(m message) (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.streams[m.stream]
	if m.flags&muxSYN != 0 {
		switch {
		case c != nil:
			return nil, fmt.Errorf("%w: stream %d begins twice", errMux, m.stream)
		case l.err != nil:
			return nil, nil
		case l.link.role == entry || m.stream%2 == 0 || len(l.streams) >= maxSessions || l.greeting >= backlog:
			l.controlLocked(message{muxWindow, muxRST, m.stream, 0}, true)
			return nil, nil
		}
		c = newConn(l)
		c.stream = m.stream
		l.streams[c.stream] = c
		l.greeting++
		l.link.e.spawn(func() { l.link.greet(c) })
	}
	if c == nil {
		return nil, nil
	}
	if !c.heard && l.link.role == entry { // whatever it says it has heard of the session
		c.heard = true
		l.opening--
		l.wakeLocked()
	}
	if m.kind == muxWindow && m.flags&muxRST == 0 && m.length > 0 {
		c.credit = min(c.credit+int64(m.length), 1<<40)
		c.canWrite.Broadcast()
	}
	return c, nil
}

// expect prepares for n bytes of the far side's.
func (c *Conn) expect(n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended && n > 0 {
		return fmt.Errorf("%w: data after the end", errMux)
	}
	if int64(n) > c.allowed {
		return fmt.Errorf("%w: %d bytes where %d are allowed", errMux, n, c.allowed)
	}
	c.allowed -= int64(n)
	return nil
}

// place is where the next of n bytes go, nil if nobody wants them any more. deliver must follow.
func (c *Conn) place(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return nil
	}
	return c.inbox.space(n)
}

// deliver takes n bytes in their place; whole: the message ends with them.
func (c *Conn) deliver(n int, whole bool) {
	c.mu.Lock()
	c.inbox.filled(n, whole)
	var code [1]byte
	if !c.answered && c.inbox.n > 0 {
		c.inbox.read(code[:])
		c.spent++
		c.answered = true
	}
	unwanted := c.closed.Load() && c.inbox.n > 0
	if unwanted || c.broken != nil {
		c.inbox.drop()
	}
	if c.inbox.n > 0 {
		c.canRead.Broadcast()
	}
	c.mu.Unlock()
	switch {
	case code[0] != byte(OK): // an exit that refuses resets
		c.abort(ErrReset, 0)
		c.lose(ErrReset)
	case unwanted:
		c.partReset(net.ErrClosed, 0)
	}
	c.lane.link.e.pressed()
}

// unread is how much waits to be read.
func (c *Conn) unread() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inbox.n
}

// Read reads what the far side wrote.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.take(p)
	if n > 0 {
		c.count(&c.received, n)
		if c.sum != nil {
			c.sum.received.Add(int64(n))
		}
	}
	return n, err
}

// unanswered is a session nobody has accepted yet: what is read of it is its OPEN, and no traffic.
type unanswered struct{ c *Conn }

func (u unanswered) Read(p []byte) (int, error) { return u.c.take(p) }

func (c *Conn) take(p []byte) (n int, err error) {
	c.mu.Lock()
	if err = c.awaitLocked(len(p)); err == nil {
		n = c.inbox.read(p)
	}
	credit := c.spentLocked(n)
	c.mu.Unlock()
	c.lane.grant(c, credit)
	return n, err
}

// awaitLocked waits until there are bytes to read, if any are wanted.
func (c *Conn) awaitLocked(wanted int) error {
	for {
		switch {
		case c.closed.Load():
			return net.ErrClosed
		case c.broken != nil:
			return c.broken
		case c.inbox.n > 0 || wanted == 0:
			return nil
		case c.ended:
			return io.EOF
		case c.readBy.passed():
			return os.ErrDeadlineExceeded
		}
		c.readBy.wait(&c.canRead)
	}
}

// spentLocked says how much credit the peer is to get for n bytes that were read: in small parts of a window, so that it
// need not wait for them where a line holds most of one.
func (c *Conn) spentLocked(n int) (credit int64) {
	c.spent += int64(n)
	c.round += int64(n)
	if c.spent < c.window/creditParts || c.off || c.ended {
		return 0
	}
	credit = c.spent + c.widenLocked()
	c.spent = 0
	c.allowed += credit
	return credit
}

// rateOver is the least time over which a session's rate is taken: a busy machine reads in bursts.
const rateOver = 10 * time.Millisecond

// widenLocked doubles a window half of which is read in four round trips, for it may be what limits the peer, and says by
// how much it has grown.
func (c *Conn) widenLocked() (more int64) {
	if c.round < c.window/2 {
		return 0
	}
	now := time.Now()
	took := now.Sub(c.rounded)
	if took < rateOver {
		return 0
	}
	inFour := float64(c.round) * 4 * float64(c.lane.link.rtt()) / float64(took)
	c.round, c.rounded = 0, now
	if c.window >= maxWindow || inFour < float64(c.window/2) || !c.inbox.mem.reserveWindow(c.window) {
		return 0
	}
	more = c.window
	c.window *= 2
	return more
}

// grant gives the peer credit, if there is any.
func (l *lane) grant(c *Conn, credit int64) {
	if credit == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.over {
		l.controlLocked(message{muxWindow, 0, c.stream, uint32(credit)}, true)
	}
}
