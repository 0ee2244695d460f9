package session

import (
	"context"
	"net"
	"os"
	"slices"
)

// What a session sends: Conn.Write → lane.send → the ring; pump (lane.go) takes it from there.

// Write hands p to the lane, waiting while the far side is slow.
func (c *Conn) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, err := c.lane.send(c, p[done:])
		if err != nil {
			return done, err
		}
		done += n
		c.count(&c.sent, n)
		if c.sum != nil {
			c.sum.sent.Add(int64(n))
		}
	}
	return done, nil
}

// writableLocked is why nothing can be written; the lane's lock is held.
func (c *Conn) writableLocked() error {
	switch {
	case c.closed.Load(), c.fin, c.over && c.why == nil:
		return net.ErrClosed
	case c.over:
		return c.why
	case c.writeBy.passed():
		return os.ErrDeadlineExceeded
	}
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
