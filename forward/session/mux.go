package session

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
)

// Inside a lane runs yamux, each session a stream of it (docs/session.md, "Inside a lane"). It is spoken here and not by
// the library, which would put a queue and two goroutines of its own between a session and its lane: each costs a copy
// and a change of goroutine, and the ring and the lane's reader are there already. So
//
//	Conn.Write  waits for the peer's credit and for room, and puts one message at a time into the ring (send)
//	Conn.Read   takes from the session's inbox, and gives the peer new credit (spentLocked)
//	receive     reads messages off the lane, their bytes straight into the inbox of the session they are for
//
// Messages without data (credit, FIN, RST) go into the ring at once, room or not: a session has only a few.

const (
	maxSessions = 16384     // a lane's incoming streams
	backlog     = 4096      // of them not yet accepted; an entry has no more of them unanswered
	yamuxWindow = 256 << 10 // bytes of a session on their way before its exit has accepted it: what yamux begins with
	firstWindow = 2 << 20   // the same then: 100 Mbit/s at 150 ms; with less BBR takes the window for the line
	maxWindow   = 32 << 20  // the same at most; like maxRing, 1.3 Gbit/s at 200 ms
	creditParts = 8         // of a window: the peer gets credit for each
	muxHeader   = 12        // bytes before a message's data
	muxMessage  = 60 << 10  // bytes of a whole message; with all heads it fits one frame of a libp2p muxer (64 KiB) or Noise (65 519)
	muxPayload  = muxMessage - muxHeader

	// mostControl: bytes of messages without data since the peer last acknowledged something; 16 384 sessions may all come
	// and go. Who makes us answer more and acknowledges nothing keeps no protocol.
	mostControl = 1 << 20
)

// What a message is: yamux spec, "Framing".
const (
	muxData   = 0
	muxWindow = 1
	muxPing   = 2
	muxGoAway = 3

	muxSYN = 1
	muxACK = 2
	muxFIN = 4
	muxRST = 8
)

// message is a message without its data.
type message struct {
	kind   byte
	flags  uint16
	stream uint32
	length uint32 // bytes of data behind it; of credit; the code of a reset
}

// put prints what parseMessage reads.
func (m message) put(b []byte) {
	b[0], b[1] = 0, m.kind
	binary.BigEndian.PutUint16(b[2:], m.flags)
	binary.BigEndian.PutUint32(b[4:], m.stream)
	binary.BigEndian.PutUint32(b[8:], m.length)
}

func parseMessage(b *[muxHeader]byte) (message, error) {
	m := message{kind: b[1], flags: binary.BigEndian.Uint16(b[2:]), stream: binary.BigEndian.Uint32(b[4:]), length: binary.BigEndian.Uint32(b[8:])}
	if b[0] != 0 || m.kind > muxGoAway {
		return m, fmt.Errorf("%w: version %d, type %d", errMux, b[0], m.kind)
	}
	return m, nil
}

// enlist gives an entry's new session a stream, and sends its OPEN as soon as there is room.
func (l *lane) enlist(ctx context.Context, c *Conn, open []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.turnLocked(c, first) {
		defer context.AfterFunc(ctx, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			c.canWrite.Broadcast()
		})()
	}
	for l.err == nil && ctx.Err() == nil && !l.turnLocked(c, first) {
		l.parkLocked(c, first)
	}
	defer l.leaveLocked(c, nowhere)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if l.err != nil {
		return l.err
	}
	for l.streams[l.nextStream] != nil { // the numbers begin again after two thousand million
		l.nextStream += 2
	}
	c.stream = l.nextStream
	l.nextStream += 2
	l.streams[c.stream] = c
	l.opening++
	b := l.ring.room(2*muxHeader+len(open), true)
	message{muxWindow, muxSYN, c.stream, firstWindow - yamuxWindow}.put(b)
	message{muxData, 0, c.stream, uint32(len(open))}.put(b[muxHeader:])
	copy(b[2*muxHeader:], open)
	c.credit -= int64(len(open))
	l.addedLocked(len(b), true)
	return nil
}

// send takes of p what one message holds, once the peer's credit and the ring allow it.
func (l *lane) send(c *Conn, p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.leaveLocked(c, nowhere)
	for {
		if err := c.writableLocked(); err != nil {
			return 0, err
		}
		n := int(min(int64(len(p)), muxPayload, c.credit))
		if n == 0 {
			l.leaveLocked(c, nowhere)
			c.writeBy.wait(&c.canWrite)
			continue
		}
		size := sizeOf(n)
		if l.turnLocked(c, size) {
			if b := l.ring.room(muxHeader+n, false); b != nil {
				message{muxData, 0, c.stream, uint32(n)}.put(b)
				copy(b[muxHeader:], p)
				c.credit -= int64(n)
				l.addedLocked(len(b), true)
				if l.ahead += n; size == large || len(l.lines[large]) == 0 {
					l.ahead = 0
				}
				return n, nil
			}
			l.link.e.short()
		}
		l.parkLocked(c, size)
	}
}

// controlLocked sends a message without data: at once, or with what goes next, 20 ms later at the latest.
func (l *lane) controlLocked(m message, soon bool) {
	if l.err != nil {
		return
	}
	m.put(l.ring.room(muxHeader, true))
	l.addedLocked(muxHeader, soon)
	if l.unheard += muxHeader; l.unheard > mostControl || l.ring.end-l.ring.acked > maxRing+mostControl {
		l.link.failSoon(errMux)
	}
}

// Who waits for room stands in one of three lines, first come first served. Small pieces have room where large ones have
// none: so a shell that shares a lane with a transfer waits for what is queued and not for its turn.
const (
	small = iota
	large
	first // a session's OPEN, which is small
	sizes

	smallPiece = 8 << 10   // bytes; more is large
	smallAhead = 128 << 10 // bytes that small pieces may have beyond maxUnsent, and go ahead of one large piece

	nowhere = -1 // no line
)

func sizeOf(n int) int {
	if n <= smallPiece {
		return small
	}
	return large
}

// turnLocked says whether c may put a piece of that size into the ring now.
func (l *lane) turnLocked(c *Conn, size int) bool {
	most := uint64(maxUnsent)
	switch {
	case size == first && l.opening >= backlog:
		return false
	case size != large && l.ahead < smallAhead:
		most += smallAhead
	case size != large && len(l.lines[large]) > 0:
		return false
	}
	line := l.lines[size]
	return l.ring.end-l.sent < most && l.ring.end-l.ring.acked < maxRing && (len(line) == 0 || line[0] == c)
}

// parkLocked waits in that line, once, until something may have changed.
func (l *lane) parkLocked(c *Conn, size int) {
	l.leaveLocked(c, size)
	if !c.inLine[size] {
		c.inLine[size] = true
		l.lines[size] = append(l.lines[size], c)
	}
	c.parked[size]++
	c.writeBy.wait(&c.canWrite)
	c.parked[size]--
}

// leaveLocked takes c out of the lines, but for one; where another writer of its waits it begins anew.
func (l *lane) leaveLocked(c *Conn, but int) {
	for size := range l.lines {
		if !c.inLine[size] || size == but {
			continue
		}
		i := slices.Index(l.lines[size], c)
		l.lines[size] = slices.Delete(l.lines[size], i, i+1)
		if c.inLine[size] = c.parked[size] > 0; c.inLine[size] {
			l.lines[size] = append(l.lines[size], c)
		}
	}
	l.wakeLocked()
}

// wakeLocked wakes those whose turn it is.
func (l *lane) wakeLocked() {
	for size, line := range l.lines {
		if len(line) > 0 && l.turnLocked(line[0], size) {
			line[0].canWrite.Broadcast()
		}
	}
}

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
