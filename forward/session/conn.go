package session

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	yamux "github.com/libp2p/go-yamux/v5"

	"github.com/libp2p/go-libp2p/core/peer"
)

// linger is how long a closed session waits for the far side's end before it resets: as a kernel keeps an orphan in
// FIN_WAIT_2.
const linger = time.Minute

const (
	muxPayload = muxMessage - muxHeader // bytes in one yamux message
	smallPiece = 8 << 10                // bytes; smaller writes do not wait for the queue
	maxQueued  = 128 << 10              // bytes queued in yamux before large writes wait; two messages keep the lane busy
)

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// Conn is one end of a session. Reads and writes wait while the path is away.
//
// The far side's FIN is io.EOF; its reset, or the link's end, is ErrReset; a refusal is *RefusedError.
type Conn struct {
	lane   *lane
	st     *yamux.Stream
	in     io.Reader // st, on the account of unread
	unread *unread
	id     sessionID
	name   string
	opened time.Time
	born   int // the lane's attachments at the start

	sent, received atomic.Int64
	sum            *carried     // of all sessions like this; nil before an exit has accepted
	bulky          atomic.Int64 // bytes moved at which the session next counts as bulk
	bulkAt         atomic.Int64 // when it last did, ns
	closed         atomic.Bool
	dead           atomic.Bool // reset from here; set before the deadlines that free who waits

	reading  sync.Mutex
	answered bool // the exit has said yes
	ended    bool // io.EOF was read

	writeBy atomic.Pointer[time.Time]
	changed signal // write deadline, CloseWrite, Close, Reset

	cause atomic.Pointer[error] // why we reset it, if not by Reset

	losing sync.Mutex
	lost   error       // it was lost for that
	after  func(error) // AfterLoss
}

func newConn(l *lane, st *yamux.Stream, o *open) *Conn {
	l.mu.Lock()
	born := l.attached
	l.mu.Unlock()
	u := l.gauge.session(st.StreamID())
	c := &Conn{lane: l, st: st, in: &counted{st, u}, unread: u, id: o.id, name: o.service, opened: time.Now(), born: born}
	c.answered = l.link.role == exit
	if l.link.role == entry {
		c.sum = l.link.e.totals.begin(l.link.peer, c.name, entry)
	}
	c.bulky.Store(bulkBytes)
	u.belong(c)
	return c
}

// Read reads what the far side wrote.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed.Load() {
		return 0, net.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := c.readLocked(p)
	if c.closed.Load() && (n == 0 || err != nil) {
		return n, net.ErrClosed
	}
	return n, c.translate(err)
}

func (c *Conn) readLocked(p []byte) (int, error) {
	if !c.answered {
		var yes [1]byte
		if _, err := io.ReadFull(c.in, yes[:]); err != nil {
			if err == io.EOF {
				err = yamux.ErrStreamReset // an exit never ends before it answers
			}
			return 0, err
		}
		if Code(yes[0]) != OK {
			c.Reset()
			return 0, yamux.ErrStreamReset
		}
		c.answered = true
	}
	n, err := c.in.Read(p)
	if n > 0 {
		c.count(&c.received, n)
		if c.sum != nil {
			c.sum.received.Add(int64(n))
		}
	}
	if err == io.EOF {
		c.ended = true
	}
	return n, err
}

// Write hands p to the lane, waiting while the far side is slow.
func (c *Conn) Write(p []byte) (int, error) {
	done := 0
	for {
		piece := p[done:min(len(p), done+muxPayload)]
		err := c.queue(len(piece))
		n := 0
		if err == nil {
			n, err = c.push(piece)
		}
		if n > 0 {
			done += n
			c.count(&c.sent, n)
			if c.sum != nil {
				c.sum.sent.Add(int64(n))
			}
		}
		if err != nil {
			if c.closed.Load() {
				return done, net.ErrClosed
			}
			return done, c.translate(err)
		}
		if done == len(p) {
			return done, nil
		}
	}
}

// push is st.Write with account of what yamux has in its queue.
func (c *Conn) push(p []byte) (int, error) {
	n, err := c.st.Write(p)
	c.lane.queued.Add(int64(n))
	return n, err
}

// queue waits with a large piece until little is queued in front of the lane. Small ones go ahead: so a shell that
// shares a lane with a transfer waits for its queue's bound and not for all it could hold.
func (c *Conn) queue(n int) error {
	if n < smallPiece {
		return nil
	}
	l := c.lane
	for l.queued.Load() > maxQueued {
		drained, changed := l.drained.wait(), c.changed.wait()
		if l.queued.Load() <= maxQueued {
			return nil
		}
		var late <-chan time.Time
		if at := c.writeBy.Load(); at != nil && !at.IsZero() {
			timer := time.NewTimer(time.Until(*at))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-drained:
		case <-changed: // yamux knows
			return nil
		case <-late:
			return yamux.ErrTimeout
		case <-l.link.ctx.Done():
			return yamux.ErrStreamReset
		}
	}
	return nil
}

// count keeps the figures for status and for the choice of lanes.
func (c *Conn) count(which *atomic.Int64, n int) {
	which.Add(int64(n))
	c.lane.moved.Add(int64(n))
	c.lane.watching.stir()
	if c.total() >= c.bulky.Load() {
		c.bulky.Store(1 << 62)
		c.bulkAt.Store(c.lane.link.e.now().UnixNano())
		c.lane.link.becameBulk(c)
	}
}

func (c *Conn) total() int64         { return c.sent.Load() + c.received.Load() }
func (c *Conn) bulkSince() time.Time { return time.Unix(0, c.bulkAt.Load()) }
func (c *Conn) calmed(total int64)   { c.bulky.Store(total + bulkBytes) }

// translate puts yamux's errors into ours.
func (c *Conn) translate(err error) error {
	var far *yamux.StreamError
	switch {
	case err == nil, err == io.EOF:
		return err
	case errors.Is(err, yamux.ErrTimeout) && !c.dead.Load():
		return os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrTimeout):
		return c.resetHere()
	case errors.Is(err, yamux.ErrStreamClosed):
		return net.ErrClosed
	case errors.As(err, &far):
		switch {
		case !far.Remote:
			return c.resetHere()
		case far.ErrorCode > refusal && far.ErrorCode < refusal+0x100:
			return &RefusedError{Service: c.name, Code: Code(far.ErrorCode - refusal)}
		}
		return ErrReset
	}
	if why := c.lane.link.reason(); why != nil {
		return fmt.Errorf("%w: %w", ErrReset, why)
	}
	return ErrReset
}

// resetHere is the error of a session that we reset.
func (c *Conn) resetHere() error {
	if why := c.cause.Load(); why != nil {
		return fmt.Errorf("%w: %w", ErrReset, *why)
	}
	return net.ErrClosed
}

// CloseWrite ends our direction: the far side reads io.EOF after the last byte.
func (c *Conn) CloseWrite() error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	k := c.lane.link
	if k.ctx.Err() != nil {
		return c.translate(c.st.CloseWrite())
	}
	// yamux has no deadline for a FIN that waits for room in a full queue, which may be until there is a path again.
	// A reset must not wait with it.
	done := make(chan error, 1)
	k.e.spawn(func() {
		done <- c.st.CloseWrite()
		c.changed.all()
	})
	for {
		changed := c.changed.wait()
		if c.dead.Load() {
			return c.resetHere()
		}
		select {
		case err := <-done:
			return c.translate(err)
		case <-changed:
		}
	}
}

// Close ends both directions in order: what was written is delivered. If the far side goes on sending
// it gets a reset, as from a kernel. Close does not wait.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	k := c.lane.link
	if k.ctx.Err() != nil {
		return nil
	}
	release := k.hold()
	k.remove(c)
	// A Read under way returns, and lets finish have the stream.
	c.st.SetReadDeadline(longAgo)
	k.e.spawn(func() {
		defer release()
		c.finish()
	})
	return nil
}

// finish sends FIN and waits for the far side's.
func (c *Conn) finish() {
	c.st.SetWriteDeadline(time.Time{})
	err := c.st.CloseWrite()
	c.changed.all()
	if err != nil {
		c.st.Reset()
		return
	}
	c.reading.Lock() // the last Read has left; later ones see closed
	ended := c.ended
	c.reading.Unlock()
	if ended {
		c.st.Close()
		return
	}
	c.st.SetReadDeadline(time.Now().Add(linger))
	var b [1]byte
	if !c.answered {
		if n, _ := c.st.Read(b[:]); n == 1 && b[0] == byte(OK) {
			c.answered = true
		}
	}
	if n, err := c.st.Read(b[:]); n == 0 && err == io.EOF {
		c.st.Close()
		return
	}
	c.st.Reset()
}

// Reset ends both directions at once: the far side gets ErrReset, never io.EOF. It does not wait.
func (c *Conn) Reset() error {
	c.closed.Store(true)
	c.abort(0)
	return nil
}

// cut resets the session for a reason that its user is told.
func (c *Conn) cut(why error) {
	c.cause.CompareAndSwap(nil, &why)
	c.abort(0)
	c.lose(c.resetHere())
}

// AfterLoss has f called, in a goroutine of its own, once the session is lost: reset by the far side, cut here for a
// reason, or with the link. The next Read or Write fails with the same error, but only if there is one. There is one
// f; stop takes it back, and says whether it will not be called.
func (c *Conn) AfterLoss(f func(error)) (stop func() bool) {
	c.losing.Lock()
	defer c.losing.Unlock()
	if c.lost != nil {
		go f(c.lost)
		return func() bool { return false }
	}
	c.after = f
	return func() bool {
		c.losing.Lock()
		defer c.losing.Unlock()
		kept := c.after != nil
		c.after = nil
		return kept
	}
}

func (c *Conn) lose(why error) {
	c.losing.Lock()
	defer c.losing.Unlock()
	if c.lost != nil {
		return
	}
	c.lost = why
	if f := c.after; f != nil {
		c.after = nil
		go f(why)
	}
}

// abort resets the stream with a yamux code. The message may wait for the path in a full queue; hence the goroutine. So
// may a Read or Write, which a reset alone does not free: a passed deadline does.
func (c *Conn) abort(code uint32) {
	k := c.lane.link
	if k.ctx.Err() != nil {
		return
	}
	release := k.hold()
	k.remove(c)
	k.e.spawn(func() {
		defer release()
		c.dead.Store(true)
		c.st.SetDeadline(longAgo)
		c.changed.all()
		c.st.ResetWithError(code)
		c.changed.all()
	})
}

// LocalAddr is this machine's peer ID as an address.
func (c *Conn) LocalAddr() net.Addr { return addr(c.lane.link.e.cfg.Self) }

// RemoteAddr is the far side's peer ID as an address.
func (c *Conn) RemoteAddr() net.Addr { return addr(c.lane.link.peer) }

// SetDeadline sets both deadlines; a missed one is os.ErrDeadlineExceeded.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline bounds reads, also one under way.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	err := c.st.SetReadDeadline(t)
	if c.dead.Load() { // abort's stands, whoever came first
		c.st.SetReadDeadline(longAgo)
	}
	return err
}

// SetWriteDeadline bounds writes, also one under way.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	c.writeBy.Store(&t)
	defer c.changed.all()
	err := c.st.SetWriteDeadline(t)
	if c.dead.Load() {
		c.st.SetWriteDeadline(longAgo)
	}
	return err
}

// Info is the session's state now.
func (c *Conn) Info() Info {
	l := c.lane
	i := Info{
		ID: c.id.String(), Service: c.name, Peer: l.link.peer, Role: l.link.role.String(), State: "open",
		Sent: c.sent.Load(), Received: c.received.Load(), Opened: c.opened,
	}
	hold := l.link.holdFor(c.name)
	l.mu.Lock()
	i.Migrations = max(0, l.attached-c.born)
	if l.cur == nil {
		i.State, i.Since = "detached", l.link.e.wall(l.since)
		i.Until = i.Since.Add(hold)
	}
	l.mu.Unlock()
	return i
}

// Incoming is a session a peer wants to open; exactly one of Accept and Refuse answers it.
type Incoming struct{ conn *Conn }

// Peer is who asks, as authenticated.
func (i *Incoming) Peer() peer.ID { return i.conn.lane.link.peer }

// Service is what is asked for.
func (i *Incoming) Service() string { return i.conn.name }

// ID is the session's ID, the same at both ends.
func (i *Incoming) ID() string { return i.conn.id.String() }

// Accept says yes.
func (i *Incoming) Accept() (*Conn, error) {
	c := i.conn
	if _, err := c.push([]byte{byte(OK)}); err != nil {
		err = c.translate(err)
		c.Reset()
		return nil, err
	}
	c.sum = c.lane.link.e.totals.begin(c.lane.link.peer, c.name, exit)
	return c, nil
}

// Refuse says no; the dialling side reads a *RefusedError.
func (i *Incoming) Refuse(code Code) error {
	if code == OK {
		code = Denied
	}
	i.conn.lane.link.e.totals.refuse(code)
	i.conn.abort(refusal + uint32(code))
	return nil
}

// addr is a peer as net.Addr.
type addr peer.ID

func (a addr) Network() string { return "fwd" }
func (a addr) String() string  { return peer.ID(a).String() }
