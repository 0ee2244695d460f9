package session

import (
	"sync"
	"sync/atomic"
	"time"
)

// attachment is one stream's time as a lane's carrier.
type attachment struct {
	l    *lane
	s    Stream
	done chan struct{} // closed when it is no longer the lane's

	resend uint64 // bytes of its predecessors' that have to be sent again

	// of the lane's reader (lane.read)
	buf  []byte
	r, w int // buf[r:w] is unread
	left int // bytes of the current DATA frame to come

	heard  atomic.Uint64          // times the stream gave bytes
	search atomic.Pointer[func()] // called when it does: it is not silent after all
	rtt    atomic.Int64           // smoothed round trip, ns
	asked  atomic.Int64           // when the last PING became due, ns of the endpoint's clock; zero: answered

	// under the lane's lock
	wake     sync.Cond // something is due, or this is no longer the lane's
	writing  bool      // its writer is at work, and will see what is due
	head     [headroom]byte
	pings    uint64 // number of the last PING
	pingDue  bool
	pong     uint64
	pongDue  bool
	renewDue bool
	endDue   bool
	reason   byte // of END
}

// wakeLocked gets what is due written.
func (a *attachment) wakeLocked() {
	if !a.writing {
		a.wake.Signal()
	}
}

// fetch reads bytes of the lane into p, large runs straight from the stream, and deals with the frames between them.
func (a *attachment) fetch(p []byte) (int, error) {
	for a.left == 0 {
		f, n, err := parseFrame(a.buf[a.r:a.w])
		if err == errShort {
			err = a.fill()
			if err != nil {
				return 0, err
			}
			continue
		}
		if err != nil {
			return 0, err
		}
		a.r += n
		if f.kind == frameData {
			a.left = int(f.value)
		} else if err := a.l.control(a, f); err != nil {
			return 0, err
		}
	}
	p = p[:min(len(p), a.left)]
	if a.r == a.w && len(p) >= len(a.buf) {
		n, err := a.read(p)
		a.left -= n
		return n, err
	}
	if a.r == a.w {
		if err := a.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, a.buf[a.r:a.w])
	a.r += n
	a.left -= n
	return n, nil
}

// fill reads more behind what is unread.
func (a *attachment) fill() error {
	if a.r > 0 {
		a.w = copy(a.buf, a.buf[a.r:a.w])
		a.r = 0
	}
	n, err := a.read(a.buf[a.w:])
	a.w += n
	if n > 0 {
		return nil
	}
	return err
}

func (a *attachment) read(p []byte) (int, error) {
	n, err := a.s.Read(p)
	if n > 0 {
		a.heard.Add(1)
		if stop := a.search.Load(); stop != nil {
			(*stop)()
		}
	}
	return n, err
}

// pingLocked asks for a sign of life.
func (a *attachment) pingLocked(now time.Time) {
	a.pings++
	a.pingDue = true
	a.asked.Store(now.UnixNano())
	a.wakeLocked()
}

// answered takes a PONG.
func (a *attachment) answered(v uint64, now time.Time) {
	a.l.mu.Lock()
	last := a.pings
	a.l.mu.Unlock()
	asked := a.asked.Load()
	if v != last || asked == 0 {
		return
	}
	a.asked.Store(0)
	a.measured(time.Duration(max(now.UnixNano()-asked, 1)))
}

// measured takes a round trip. The lane keeps the shortest: what a queue adds to the others asks for no greater window.
func (a *attachment) measured(rtt time.Duration) {
	took := int64(rtt)
	if shortest := &a.l.link.rtts[a.l.index]; shortest.Load() == 0 || took < shortest.Load() {
		shortest.Store(took)
	}
	if old := a.rtt.Load(); old != 0 {
		took = max(old+(took-old)/8, 1)
	}
	a.rtt.Store(took)
}
