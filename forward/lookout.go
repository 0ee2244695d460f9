package forward

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A lookout looks at a socket while nobody reads it: its bytes wait to be written to the other side, or it has sent its
// last and the other side's are waited for. The kernel knows then that its program is gone, by a reset or by keep-alive,
// but tells only who reads. It costs a timer, which rests while the socket is read.
type lookout struct {
	socket syscall.RawConn
	lost   func(error)

	away atomic.Bool // nobody reads
	set  atomic.Bool // the timer will look

	mu    sync.Mutex
	timer *time.Timer
	ended bool
}

// lookEvery is how often: as keep-alive does.
const lookEvery = 15 * time.Second

var errUnread = errors.New("the connection has failed while it was not read")

// newLookout looks at c, if it is a socket; a nil lookout does nothing. lost is called at most once, and not after end.
func newLookout(c net.Conn, lost func(error)) *lookout {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	socket, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	l := &lookout{socket: socket, lost: lost}
	l.timer = time.AfterFunc(time.Hour, l.look)
	l.timer.Stop()
	return l
}

// unread says that the socket is not read from now on.
func (l *lookout) unread() {
	if l == nil {
		return
	}
	l.away.Store(true)
	l.wait()
}

func (l *lookout) wait() {
	if !l.set.Load() && !l.set.Swap(true) {
		l.timer.Reset(lookEvery)
	}
}

// read says that it is read again. The timer may look once more for nothing: that costs less than stopping it each time.
func (l *lookout) read() {
	if l != nil {
		l.away.Store(false)
	}
}

func (l *lookout) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended:
		return
	case l.away.Load() && failed(l.socket):
		l.ended = true
		l.lost(errUnread)
		return
	}
	l.set.Store(false)
	if l.away.Load() {
		l.wait()
	}
}

func (l *lookout) end() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.timer.Stop()
}
