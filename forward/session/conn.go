package session

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// linger is how long a closed session waits for the far side's end before it resets: as a kernel keeps an orphan in
// FIN_WAIT_2.
const linger = time.Minute

// Conn is one end of a session. Reads and writes wait while the path is away.
//
// The far side's FIN is io.EOF; its reset, or the link's end, is ErrReset; a refusal is *RefusedError.
type Conn struct {
	lane   *lane
	stream uint32
	id     sessionID
	name   string
	opened time.Time
	born   int // the lane's attachments at the start

	sent, received atomic.Int64
	sum            *carried     // of all sessions like this; nil before an exit has accepted
	bulky          atomic.Int64 // bytes moved at which the session next counts as bulk
	bulkAt         atomic.Int64 // when it last did, ns
	closed         atomic.Bool  // by its user

	// what goes out, under the lane's lock
	canWrite sync.Cond // credit, room, a deadline, or the end
	credit   int64     // bytes that the peer lets us send
	writeBy  limit
	inLine   [sizes]bool
	parked   [sizes]int    // writers in line
	heard    bool          // an entry's: the exit has said something of it
	greeted  bool          // an exit's: Accept has taken it
	parted   chan struct{} // an exit's: closed when it is over
	fin      bool          // nothing more is written
	over     bool          // it is off the lane
	why      error         // what a Write is told then; nil: that it is closed
	orphan   *time.Timer
	release  func() // the link, which a closed session needs for a while

	// what comes in
	mu       sync.Mutex // after the lane's
	canRead  sync.Cond  // bytes, a deadline, or the end
	inbox    inbox
	readBy   limit
	answered bool      // the exit has said yes
	window   int64     // bytes that the peer may have on their way
	allowed  int64     // of them it may still send
	spent    int64     // bytes read since the peer was last given credit
	round    int64     // bytes read since the window was last looked at
	rounded  time.Time // when that was
	ended    bool      // the far side has
	broken   error     // why nothing can be read any more
	off      bool      // it is off the lane: no credit is given any more

	losing sync.Mutex
	lost   error       // it was lost for that
	after  func(error) // AfterLoss
}

func newConn(l *lane) *Conn {
	c := &Conn{lane: l, opened: time.Now(), credit: yamuxWindow, window: yamuxWindow, rounded: time.Now()}
	c.canWrite.L, c.canRead.L = &l.mu, &c.mu
	c.inbox.mem = &l.link.e.mem
	c.bulky.Store(bulkBytes)
	if l.link.role == entry {
		c.window = firstWindow
	} else {
		c.answered, c.parted = true, make(chan struct{})
	}
	c.allowed = c.window
	return c
}

// begin gives the session what its OPEN says.
func (c *Conn) begin(o *open) {
	l := c.lane
	c.id, c.name = o.id, o.service
	l.mu.Lock()
	c.born = l.attached
	l.mu.Unlock()
	if l.link.role == entry {
		c.sum = l.link.e.totals.begin(l.link.peer, c.name, entry)
	}
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

func (c *Conn) total() int64 { return c.sent.Load() + c.received.Load() }

func (c *Conn) bulkSince() time.Time { return time.Unix(0, c.bulkAt.Load()) }

func (c *Conn) calmed(total int64) { c.bulky.Store(total + bulkBytes) }

// CloseWrite ends our direction: the far side reads io.EOF after the last byte.
func (c *Conn) CloseWrite() error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	l := c.lane
	l.mu.Lock()
	switch {
	case c.fin:
		l.mu.Unlock()
		return nil
	case c.over:
		defer l.mu.Unlock()
		return c.writableLocked()
	}
	both := c.finLocked()
	l.mu.Unlock()
	if both {
		c.partInOrder()
	}
	return nil
}

// finLocked ends our direction and says whether the far side has ended its own.
func (c *Conn) finLocked() (both bool) {
	if !c.fin {
		c.fin = true
		c.lane.controlLocked(message{muxWindow, muxFIN, c.stream, 0}, true)
		c.canWrite.Broadcast()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// farEnd takes the far side's FIN.
func (c *Conn) farEnd() {
	c.mu.Lock()
	if !c.answered { // an exit never ends before it answers
		c.mu.Unlock()
		c.farReset(message{kind: muxData})
		return
	}
	c.ended = true
	c.canRead.Broadcast()
	c.mu.Unlock()
	l := c.lane
	l.mu.Lock()
	both := c.fin
	l.mu.Unlock()
	if both {
		c.partInOrder()
	}
}

// Close ends both directions in order: what was written is delivered. If the far side goes on sending
// it gets a reset, as from a kernel. Close does not wait.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	l, k := c.lane, c.lane.link
	release := k.hold()
	k.remove(c)
	c.mu.Lock()
	unread := c.inbox.n > 0
	c.inbox.drop()
	c.canRead.Broadcast()
	c.mu.Unlock()
	l.mu.Lock()
	if c.over {
		l.mu.Unlock()
		release()
		return nil
	}
	c.release = release
	both := c.finLocked()
	if !both && !unread {
		c.orphan = time.AfterFunc(linger, func() { c.partReset(net.ErrClosed, 0) })
	}
	l.mu.Unlock()
	switch {
	case unread:
		c.partReset(net.ErrClosed, 0)
	case both:
		c.partInOrder()
	}
	return nil
}

// Reset ends both directions at once: the far side gets ErrReset, never io.EOF. It does not wait.
func (c *Conn) Reset() error {
	c.closed.Store(true)
	c.abort(net.ErrClosed, 0)
	return nil
}

// cut resets the session for a reason that its user is told.
func (c *Conn) cut(why error) {
	why = fmt.Errorf("%w: %w", ErrReset, why)
	c.abort(why, 0)
	c.lose(why)
}

// abort resets the session with a code of yamux's.
func (c *Conn) abort(why error, code int) {
	c.lane.link.remove(c)
	c.partReset(why, code)
}

// farReset takes the far side's reset.
func (c *Conn) farReset(m message) {
	why := ErrReset
	if code := m.length; c.lane.link.role == entry && m.kind == muxWindow && code > refusal && code < refusal+0x100 {
		why = &RefusedError{Service: c.name, Code: Code(code - refusal)}
	}
	if c.partTold(why) {
		c.lane.link.remove(c)
		c.lose(why)
	}
}

// partInOrder takes the session off its lane: both directions have ended.
func (c *Conn) partInOrder() { c.part(nil, untold) }

// partReset does so before that, and tells the peer with a code of yamux's. why is what its user is told.
func (c *Conn) partReset(why error, code int) { c.part(why, code) }

// partTold does so where the peer knows: it has, or it hears of the link's end. False: the session was off already.
func (c *Conn) partTold(why error) bool { return c.part(why, untold) }

// untold is the code that the peer is not told.
const untold = -1

// part is behind the three of them.
func (c *Conn) part(why error, code int) bool {
	l := c.lane
	l.mu.Lock()
	if c.over {
		l.mu.Unlock()
		c.breakOff(why, code)
		return false
	}
	c.over, c.why = true, why
	delete(l.streams, c.stream)
	switch {
	case l.link.role == exit:
		close(c.parted)
		if !c.greeted {
			l.greeting--
		}
	case !c.heard && c.stream != 0:
		l.opening--
		l.wakeLocked()
	}
	if code != untold {
		l.controlLocked(message{muxWindow, muxRST, c.stream, uint32(code)}, true)
	}
	c.canWrite.Broadcast()
	release := c.release
	if c.orphan != nil {
		c.orphan.Stop()
	}
	l.mu.Unlock()

	c.breakOff(why, code)
	c.mu.Lock()
	c.off = true
	c.inbox.mem.reserveWindow(min(0, firstWindow-c.window))
	c.mu.Unlock()
	if release != nil {
		release()
	}
	return true
}

// endedInOrder says whether both directions have: the lane knows the session no more.
func (c *Conn) endedInOrder() bool {
	c.lane.mu.Lock()
	defer c.lane.mu.Unlock()
	return c.over && c.why == nil
}

// breakOff ends reading for that reason. What a far side has sent in order before it was reset can be read still.
func (c *Conn) breakOff(why error, code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if why != nil && c.broken == nil && (code != untold || !c.ended) {
		c.broken = why
		c.inbox.drop()
	}
	c.canRead.Broadcast()
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
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy.at = t
	c.canRead.Broadcast()
	return nil
}

// SetWriteDeadline bounds writes, also one under way.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.closed.Load() {
		return net.ErrClosed
	}
	c.lane.mu.Lock()
	defer c.lane.mu.Unlock()
	c.writeBy.at = t
	c.canWrite.Broadcast()
	return nil
}

// limit is a deadline of those who wait on a Cond.
type limit struct {
	at    time.Time // zero: none
	timer *time.Timer
}

func (d *limit) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// wait waits until the Cond is told of a change, or the deadline passes.
func (d *limit) wait(c *sync.Cond) {
	if d.at.IsZero() {
		c.Wait()
		return
	}
	if left := time.Until(d.at); d.timer != nil {
		d.timer.Reset(left)
	} else {
		d.timer = time.AfterFunc(left, func() {
			c.L.Lock()
			defer c.L.Unlock()
			c.Broadcast()
		})
	}
	c.Wait() // the timer goes on, for others may wait
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
	c.taken() // before the entry hears of it
	if err := c.accepted(); err != nil {
		c.Reset()
		return nil, err
	}
	c.sum = c.lane.link.e.totals.begin(c.lane.link.peer, c.name, exit)
	return c, nil
}

// taken tells the entry that somebody deals with the session: it may open another one instead.
func (c *Conn) taken() {
	l := c.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.greeted && !c.over {
		c.greeted = true
		l.greeting--
		l.controlLocked(message{muxWindow, muxACK, c.stream, 0}, false)
	}
}

// accepted says yes and gives the session its first window. Nobody waits for that: it goes with the target's first bytes
// or the first credit, if they come within ackDelay, for each write wakes the entry.
func (c *Conn) accepted() error {
	l := c.lane
	c.mu.Lock()
	c.window += firstWindow - yamuxWindow
	c.allowed += firstWindow - yamuxWindow
	c.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := c.writableLocked(); err != nil {
		return err
	}
	l.controlLocked(message{muxWindow, 0, c.stream, firstWindow - yamuxWindow}, false)
	b := l.ring.room(muxHeader+1, true)
	message{muxData, 0, c.stream, 1}.put(b)
	b[muxHeader] = byte(OK)
	c.credit--
	l.addedLocked(len(b), false)
	return nil
}

// Refuse says no; the dialling side reads a *RefusedError.
func (i *Incoming) Refuse(code Code) error {
	if code == OK {
		code = Denied
	}
	i.conn.lane.link.e.totals.refuse(code)
	i.conn.abort(net.ErrClosed, refusal+int(code))
	return nil
}

// addr is a peer as net.Addr.
type addr peer.ID

func (a addr) Network() string { return "fwd" }

func (a addr) String() string { return peer.ID(a).String() }
