package forward

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The way of the bytes, the same in each direction:
//
//  1. read into a buffer that grows while reads fill it (buffer.go)
//  2. write all of it to the other side
//  3. at end of file close the other side for writing, and let the opposite
//     direction go on
//  4. on a failed read reset both sides
//  5. on a failed write stop reading, give the opposite direction a moment to
//     deliver what the failed side had still sent, then reset both sides
//  6. the same when a side tells of its loss by itself (AfterLoss): while both
//     directions wait for bytes nobody would notice
//  7. and when a socket fails that is not read just now, for its bytes wait to be
//     written or it has sent its last (lookout.go)
//
// Copy returns when both directions have ended.

// drainTime is how long, after a side refused our bytes, its own last ones may take
// to arrive: 1 s, enough for a web server's answer that came before it closed on a
// too large upload. A direct TCP connection would deliver that answer as well.
const drainTime = time.Second

// Copy carries bytes between a and b, both ways, until both directions have ended,
// and returns how many went each way. It owns a and b: both are closed on return.
//
// End of file on one side is passed on by CloseWrite while the other direction
// continues. With err == nil everything read was written and both ends were clean.
// Otherwise both sides have been reset and err is the first failure. To stop a Copy
// from outside, [Reset] both connections.
func Copy(a, b Conn) (aToB, bToA int64, err error) {
	p := &pair{a: a, b: b}
	unwatchA, unwatchB := p.watch(a, b), p.watch(b, a)
	lookA, lookB := newLookout(a, p.lost), newLookout(b, p.lost)
	other := make(chan int64)
	go func() { other <- p.copyHalf(p.a, p.b, lookB) }() // ends with its direction; both sides' reset ends both
	aToB = p.copyHalf(b, a, lookA)
	bToA = <-other
	unwatchA()
	unwatchB()
	lookA.end()
	lookB.end()

	if p.err != nil { // both directions have ended, p is ours alone
		if p.drainUntil.Load() != nil {
			// The reset would overtake what the direction that ended well delivered.
			time.Sleep(time.Until(p.endedAt.Add(drainTime)))
		}
		p.reset()
		return aToB, bToA, p.err
	}
	a.Close()
	b.Close()
	return aToB, bToA, nil
}

// A pair is two connections on the way to the same end.
type pair struct {
	a, b Conn

	drainUntil atomic.Pointer[time.Time] // set once a write failed

	mu      sync.Mutex
	err     error     // the first failure; later ones are its consequences
	endedAt time.Time // when a direction last ended well
}

// copyHalf carries src to dst until src ends or either fails, and returns how many
// bytes dst took. While it does not read src the lookout does.
func (p *pair) copyHalf(dst, src Conn, look *lookout) (n int64) {
	buf := newBuffer()
	defer buf.free()
	for {
		nr, readErr := p.read(src, buf)
		if nr > 0 {
			look.unread()
			nw, err := dst.Write(buf.bytes()[:nr])
			look.read()
			n += int64(nw)
			if err == nil && nw < nr {
				err = io.ErrShortWrite
			}
			if err != nil {
				p.failWrite(dst, src, err)
				return n
			}
		}
		switch {
		case readErr == nil:
			buf.fit(nr)
		case readErr == io.EOF:
			look.unread() // its last; and it may fail yet
			if err := dst.CloseWrite(); err != nil {
				p.failWrite(dst, src, err)
			} else {
				p.end()
			}
			return n
		case p.drainUntil.Load() != nil && isDeadline(readErr):
			return n // the opposite direction may still deliver, for its own drainTime
		default:
			p.lost(readErr)
			return n
		}
	}
}

// read reads once from src. A big buffer waits for data only [idleAfter] and is then
// exchanged for the smallest, so that silent connections hold little memory however
// much they once carried.
func (p *pair) read(src Conn, buf *buffer) (int, error) {
	for {
		timed := buf.big() && src.SetReadDeadline(time.Now().Add(idleAfter)) == nil
		n, err := src.Read(buf.bytes())
		if p.drainUntil.Load() != nil {
			return n, err // a deadline, if it is one, is then drainTime's
		}
		if !timed {
			return n, err
		}
		// Taken back before the flag is looked at again: whoever sets the flag sets
		// its deadline afterwards, so one of us leaves the right one in place.
		src.SetReadDeadline(time.Time{})
		if until := p.drainUntil.Load(); until != nil {
			src.SetReadDeadline(*until)
		}
		if n == 0 && isDeadline(err) {
			buf.shrink()
			continue
		}
		return n, err
	}
}

// failWrite notes that dst took no more bytes of src, and lets what dst has sent
// still through, for drainTime.
func (p *pair) failWrite(dst, src Conn, err error) {
	p.fail(err)
	until := time.Now().Add(drainTime)
	p.drainUntil.CompareAndSwap(nil, &until)
	dst.SetReadDeadline(until)
	src.SetWriteDeadline(until)
}

// watch has c's loss end what waits for the other side, if c tells of it. The returned
// function ends that, and waits for what has begun.
func (p *pair) watch(c, other Conn) (unwatch func()) {
	teller, ok := c.(interface {
		AfterLoss(f func(error)) (stop func() bool)
	})
	if !ok {
		return func() {}
	}
	told := make(chan struct{})
	stop := teller.AfterLoss(func(err error) {
		defer close(told)
		p.failWrite(c, other, err)
		other.SetReadDeadline(longAgo)
	})
	return func() {
		if !stop() {
			<-told
		}
	}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

func (p *pair) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

// lost ends both directions at once: what a failed side had still sent is gone.
func (p *pair) lost(err error) {
	p.fail(err)
	p.reset()
}

func (p *pair) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endedAt = time.Now()
}

func (p *pair) reset() {
	Reset(p.a)
	Reset(p.b)
}

// isDeadline reports whether err is a passed deadline of ours. A kernel's ETIMEDOUT,
// which calls itself a timeout too, is a dead connection; reading on after it would
// give a clean end of file.
func isDeadline(err error) bool {
	var ne net.Error
	var errno syscall.Errno
	return errors.As(err, &ne) && ne.Timeout() && !errors.As(err, &errno)
}
