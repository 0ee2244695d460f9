package session

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The way of a byte:
//
//	1. Conn.Write → lane.send: into the ring, with its checksum.
//	2. pump: out of the ring, as frames, onto the stream of the moment. It stays in the ring until acknowledged.
//	3. attachment.fetch: off the other end's stream.
//	4. lane.read, commit: counted, summed, and in a session's inbox → Conn.Read. From here on an ACK is due.
//
// Nothing above step 1 or after step 4 knows that the stream in the middle changes.

const (
	// maxRing: unacknowledged bytes a lane keeps; 32 MiB fill 1.3 Gbit/s at 200 ms.
	maxRing = 32 << 20
	// minRing: bytes a lane may keep however short memory is.
	minRing = 512 << 10
	// maxUnsent: bytes waiting behind the stream's own back-pressure. More would only be delay.
	maxUnsent = 256 << 10
	// maxUnit: bytes in one DATA frame: a message, and small ones behind it. With the heads and TLS records of a circuit it
	// still fits one frame of the muxer below.
	maxUnit = muxMessage + 1<<10
	// ackBytes: delivered bytes that make an ACK due; a small part of any window.
	ackBytes = 256 << 10
	// ackDelay: what an ACK waits for company.
	ackDelay = 20 * time.Millisecond
	// readBuffer: bytes read at once when not straight into a session's inbox: heads and small messages.
	readBuffer = 4 << 10
	// endPatience: how long an ending lane waits for the peer to take END and drop the stream; with 2 RTT, at most a second.
	endPatience = 250 * time.Millisecond
)

// lane is a byte stream to the peer that outlives its streams, and the sessions in it (mux.go).
type lane struct {
	link  *link
	index uint8

	bulk  atomic.Int32 // sessions that move much
	heavy atomic.Bool  // it has sessions that move much, or had a moment ago: its path is chosen for that
	conns atomic.Int32 // sessions
	moved atomic.Int64 // application bytes, both ways

	lightSince time.Time // heavy without bulk since; under the link's lock

	mu       sync.Mutex
	canRead  sync.Cond // an attachment, no freeze, or the end
	err      error     // why the lane has ended
	cur      *attachment
	since    time.Time // cur became nil or not nil
	epoch    uint32    // of the last attach: sent (C), accepted (E)
	attached int       // attachments so far
	frozen   bool      // C, between ATTACH and its answer: nothing is delivered

	// outgoing
	ring    ring
	sent    uint64 // next offset to send on cur
	maxSent uint64 // the most ever sent
	resent  uint64 // bytes sent again after changes of stream

	// incoming
	rxOff    uint64 // bytes delivered
	rxCRC    uint32 // of all of them
	ackSent  uint64 // last offset acknowledged
	ackDue   bool
	ackTimer *time.Timer // armed: an ACK becomes due
	armed    bool

	// sessions
	streams    map[uint32]*Conn
	nextStream uint32         // of an entry's next session
	opening    int            // an entry's sessions of which its exit has said nothing yet
	greeting   int            // an exit's sessions that Accept has not taken yet
	ahead      int            // bytes of small pieces that went ahead of the large one that waits
	unheard    int            // bytes of messages without data since the peer last acknowledged something
	lines      [sizes][]*Conn // who waits for room

	watching watcher
}

func newLane(k *link, index uint8) *lane {
	l := &lane{link: k, index: index, since: k.e.now(), streams: map[uint32]*Conn{}, nextStream: 1}
	l.ring.mem, l.ring.all = &k.e.mem, &k.held
	l.canRead.L = &l.mu
	l.watching.kick = make(chan struct{}, 1)
	l.ackTimer = time.AfterFunc(time.Hour, l.ackTime)
	l.ackTimer.Stop()
	return l
}

// addedLocked counts n bytes that were put into the ring's room and has them sent: at once, or with what goes next.
func (l *lane) addedLocked(n int, soon bool) {
	if l.ring.end == l.ring.acked {
		l.watching.nudgeIdle()
	}
	l.ring.add(n)
	if !soon {
		l.armLocked()
	} else if l.cur != nil {
		l.cur.wakeLocked()
	}
}

// pumpLocked sends what is due on a until nothing is. The lock is let go around each write.
func (l *lane) pumpLocked(a *attachment) {
	var scratch *chunk
	for l.cur == a {
		head, c, from, n := l.nextLocked(a)
		if head == 0 {
			break
		}
		var out []byte
		if c != nil && from == 0 && c.pins == 0 {
			// The head goes into the room in front of the payload: one write, no copy.
			copy(c.buf[headroom-head:], a.head[:head])
			out = c.buf[headroom-head : headroom+n]
		} else {
			if scratch == nil || len(scratch.buf) < head+n {
				if scratch != nil {
					l.ring.mem.put(scratch)
				}
				scratch = l.ring.mem.get(chunkFor(head + n))
			}
			out = append(scratch.buf[:0], a.head[:head]...)
			if c != nil {
				out = append(out, c.bytes()[from:from+n]...)
			}
		}
		if c != nil {
			c.pins++
		}
		a.writing = true
		l.mu.Unlock()
		_, err := a.s.Write(out)
		l.mu.Lock()
		a.writing = false
		if c != nil {
			l.ring.unpin(c)
		}
		if err != nil {
			l.loseLocked(a, err)
		}
	}
	if scratch != nil {
		l.ring.mem.put(scratch)
	}
}

// nextLocked puts the head of the next write into a.head and says how long it is, and which bytes of which chunk follow.
func (l *lane) nextLocked(a *attachment) (head int, c *chunk, from, n int) {
	h := a.head[:0]
	data := l.sent < l.ring.end
	if l.ackDue || data && l.rxOff > l.ackSent {
		h = appendFrame(h, frame{frameAck, l.rxOff})
		l.ackSent, l.ackDue = l.rxOff, false
	}
	if a.pingDue {
		h = appendFrame(h, frame{framePing, a.pings})
		a.pingDue = false
	}
	if a.pongDue {
		h = appendFrame(h, frame{framePong, a.pong})
		a.pongDue = false
	}
	if a.renewDue {
		h = appendFrame(h, frame{frameRenew, 0})
		a.renewDue = false
	}
	if !data {
		if a.endDue {
			h = appendFrame(h, frame{frameEnd, uint64(a.reason)})
			a.endDue = false
		}
		return len(h), nil, 0, 0
	}
	c = l.ring.at(l.sent)
	from = int(l.sent - c.start)
	n = min(c.n-from, maxUnit)
	h = appendFrame(h, frame{frameData, uint64(n)})
	l.sent += uint64(n)
	l.maxSent = max(l.maxSent, l.sent)
	l.wakeLocked()
	return len(h), c, from, n
}

// read reads the next bytes into p, from whichever stream carries the lane.
func (l *lane) read(p []byte) (int, error) {
	for {
		a, err := l.carrier()
		if err != nil {
			return 0, err
		}
		n, err := a.fetch(p)
		if n > 0 && l.commit(a, p[:n]) {
			return n, nil
		}
		if err != nil {
			l.lose(a, err)
		}
	}
}

// carrier waits for an attachment.
func (l *lane) carrier() (*attachment, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.cur == nil && l.err == nil {
		l.canRead.Wait()
	}
	return l.cur, l.err
}

// commit counts bytes that a has delivered into p, or says that they do not count: a has been replaced since.
// During a freeze it waits to know.
func (l *lane) commit(a *attachment, p []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.frozen && l.cur == a && l.err == nil {
		l.canRead.Wait()
	}
	if l.cur != a || l.err != nil {
		return false
	}
	l.rxOff += uint64(len(p))
	l.rxCRC = crc32.Update(l.rxCRC, castagnoli, p)
	switch {
	case l.rxOff-l.ackSent >= ackBytes && !l.ackDue:
		l.ackDue = true
		a.wakeLocked()
	default:
		l.armLocked()
	}
	return true
}

// armLocked has what is due sent ackDelay from now, if nothing takes it along before.
func (l *lane) armLocked() {
	if !l.armed {
		l.armed = true
		l.ackTimer.Reset(ackDelay)
	}
}

// ackTime runs when the ACK timer fires.
func (l *lane) ackTime() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = false
	if l.cur != nil {
		l.ackDue = l.rxOff > l.ackSent
		l.cur.wakeLocked()
	}
}

// control takes a frame other than DATA.
func (l *lane) control(a *attachment, f frame) error {
	switch f.kind {
	case framePong:
		a.answered(f.value, l.link.e.now())
		return nil
	case frameEnd:
		l.link.farEnd(byte(f.value))
		return errEnded
	case frameRenew:
		if l.link.role == entry {
			l.watching.askRenew(l.link.e.now(), false)
		}
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur != a {
		return nil // replaced: what it says no longer counts
	}
	switch f.kind {
	case frameAck:
		if f.value < l.ring.acked || f.value > l.sent {
			return protocolError("ACK out of range")
		}
		if f.value > l.ring.acked {
			l.unheard = 0
		}
		l.ring.ack(f.value)
		l.wakeLocked()
	case framePing:
		a.pong, a.pongDue = f.value, true
		a.wakeLocked()
	}
	return nil
}

// judgeLocked says whether the peer may continue at an offset: we have sent that much, with that sum, and have it still.
func (l *lane) judgeLocked(offset uint64, crc uint32) status {
	if offset < l.ring.acked || offset > l.maxSent || l.ring.crcAt(offset) != crc {
		return statusDesync
	}
	return statusOK
}

// switchLocked makes s the lane's stream; the peer continues at offset. judgeLocked has said yes.
func (l *lane) switchLocked(s Stream, offset uint64, rtt time.Duration) *attachment {
	if l.cur != nil {
		l.partLocked(l.cur)
	}
	a := &attachment{l: l, s: s, done: make(chan struct{}), buf: make([]byte, readBuffer)}
	a.wake.L = &l.mu
	l.link.rtts[l.index].Store(0)
	a.measured(rtt)
	if rtt == 0 {
		a.pingLocked(l.link.e.now()) // the sessions' windows depend on it
	}
	a.resend = l.sent - min(offset, l.sent)
	l.resent += a.resend
	l.ring.ack(offset)
	l.sent = offset
	l.ackSent, l.ackDue = l.rxOff, false
	l.cur, l.since, l.frozen = a, l.link.e.now(), false
	l.attached++
	if l.attached > 1 {
		l.link.e.totals.migrations.Add(1)
	}
	l.canRead.Broadcast()
	l.wakeLocked()
	return a
}

// tellMove tells the log of an attachment; that of a new lane is nobody's concern.
func (l *lane) tellMove(a *attachment) {
	l.mu.Lock()
	n, resent := l.attached, a.resend
	l.mu.Unlock()
	level := l.link.e.log.Info
	if n == 1 {
		level = l.link.e.log.Debug
	}
	level("lane attached", "peer", l.link.peer, "role", l.link.role.String(), "lane", l.index, "times", n, "resent", resent)
}

// carry writes what becomes due on a until a is replaced or lost: the attachment's writer.
func (l *lane) carry(a *attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.cur == a {
		if l.pumpLocked(a); l.cur == a {
			a.wake.Wait()
		}
	}
}

// lose ends a because its stream failed.
func (l *lane) lose(a *attachment, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseLocked(a, err)
}

func (l *lane) loseLocked(a *attachment, err error) {
	if l.cur != a {
		return
	}
	l.partLocked(a)
	var bad protocolError
	if errors.As(err, &bad) {
		l.watching.violation(l)
	}
	l.link.e.log.Debug("lane lost its stream", "peer", l.link.peer, "lane", l.index, "err", err)
	l.watching.nudge()
}

// partLocked takes the current attachment off the lane and ends its stream.
func (l *lane) partLocked(a *attachment) {
	l.cur, l.since = nil, l.link.e.now()
	close(a.done)
	a.wake.Broadcast()
	l.canRead.Broadcast()
	l.link.changed()
	// Ending a stream may wait for a dead connection's queue.
	l.link.e.spawn(func() { retire(a.s) })
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// retire ends a stream at once. The deadline comes first: it also frees a writer that waits for a
// connection's queue, which Reset alone does not.
func retire(s Stream) error {
	s.SetDeadline(longAgo)
	return s.Reset()
}

// end ends the lane for good: the peer is told if it can be, then the sessions in it are reset.
func (l *lane) end(err error, reason byte) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	l.ackTimer.Stop()
	a := l.cur
	if a != nil {
		l.sent = l.ring.end // nothing more but END
		a.endDue, a.reason = true, reason
		a.wakeLocked()
	}
	l.canRead.Broadcast()
	all := slices.Collect(maps.Values(l.streams))
	for _, c := range l.lines[first] {
		c.canWrite.Broadcast()
	}
	l.mu.Unlock()
	reset := fmt.Errorf("%w: %w", ErrReset, err)
	for _, c := range all {
		c.partTold(reset)
	}
	if a != nil {
		late := time.NewTimer(min(max(endPatience, 2*time.Duration(a.rtt.Load())), time.Second))
		select {
		case <-a.done:
		case <-late.C:
			l.lose(a, err)
		}
		late.Stop()
	}
	l.mu.Lock()
	l.ring.clear()
	l.mu.Unlock()
}
