package session

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	yamux "github.com/libp2p/go-yamux/v5"
)

// What has come for a session and its application has not read yet waits in yamux, which does not say how much that is.
// A gauge at the lane reads along and knows. Each session may hold its window, for a slow reader stops nobody but its own
// writer; but thousands of them could hold more than a machine has, and then those that hold most are reset.
//
// It sees resets too, which yamux tells nobody who neither reads nor writes: a session whose far side has ended its
// direction and waits for a silent target would stay for ever.

const (
	// unreadShare is how much all sessions together may hold, in Config.Budget: 1 GiB by default, 512 first windows.
	unreadShare = 4
	// unreadLeast is the same in bytes, however small the budget is: 8 first windows.
	unreadLeast = 8 * firstWindow
)

// Of a yamux head: its type and flags, as far as they matter here (yamux spec, "Framing").
const (
	muxData   = 0
	muxWindow = 1
	muxSYN    = 1
	muxRST    = 8
)

// unread is what one session holds.
type unread struct {
	all *atomic.Int64

	mu   sync.Mutex
	n    int64
	over bool // the session is gone
	conn *Conn
	rst  error // the far side's reset, if it came before conn
}

// belong says whose account it is.
func (u *unread) belong(c *Conn) {
	u.mu.Lock()
	rst := u.rst
	u.conn = c
	u.mu.Unlock()
	if rst != nil {
		c.lose(c.translate(rst))
	}
}

// reset ends the session that the far side has reset.
func (u *unread) reset(rst error) {
	u.mu.Lock()
	c := u.conn
	u.rst = rst
	u.mu.Unlock()
	if c != nil {
		c.lane.link.remove(c)
		c.lose(c.translate(rst))
	}
}

func (u *unread) add(n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return
	}
	u.n += n
	u.all.Add(n)
}

func (u *unread) bytes() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.n
}

// drop ends the account.
func (u *unread) drop() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.all.Add(-u.n)
	u.n, u.over = 0, true
}

// counted reads from a stream on a session's account.
type counted struct {
	st     io.Reader
	unread *unread
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.st.Read(p)
	r.unread.add(-int64(n))
	return n, err
}

// gauge reads along what a lane hands to yamux: heads, and behind those of data as many bytes as they say.
type gauge struct {
	e *Endpoint

	mu       sync.Mutex
	sessions map[uint32]*unread // by stream
	ended    bool

	// of the lane's reader
	head [muxHeader]byte
	have int // bytes of head
	left int64
	of   *unread // whose the bytes left are; nil: nobody's any more
}

// session begins the account of a stream, if there is none yet.
func (g *gauge) session(stream uint32) *unread {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sessionLocked(stream)
}

func (g *gauge) sessionLocked(stream uint32) *unread {
	u := g.sessions[stream]
	if u == nil {
		if g.sessions == nil {
			g.sessions = make(map[uint32]*unread)
		}
		u = &unread{all: &g.e.mem.unread, over: g.ended}
		g.sessions[stream] = u
	}
	return u
}

// forget ends the account of a stream.
func (g *gauge) forget(stream uint32) {
	g.mu.Lock()
	u := g.sessions[stream]
	delete(g.sessions, stream)
	g.mu.Unlock()
	if u != nil {
		u.drop()
	}
}

// end ends all accounts.
func (g *gauge) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, u := range g.sessions {
		u.drop()
	}
	clear(g.sessions)
	g.ended = true
}

// pass counts what p brings.
func (g *gauge) pass(p []byte) {
	defer g.pressed()
	for len(p) > 0 {
		if g.left > 0 {
			n := min(g.left, int64(len(p)))
			if g.of != nil {
				g.of.add(n)
			}
			g.left -= n
			p = p[n:]
			continue
		}
		n := copy(g.head[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have == muxHeader {
			g.have = 0
			if u, rst := g.begin(); u != nil {
				u.reset(rst)
			}
		}
	}
}

// pressed tells the endpoint when there is too much.
func (g *gauge) pressed() {
	if g.e.mem.tooMuchUnread() {
		select {
		case g.e.full <- struct{}{}:
		default:
		}
	}
}

// begin takes a head in. A stream that yamux refuses never becomes a session: its account ends with the lane, so there are
// never more of them than there can be streams. The account and the error are those of a stream that is reset by it.
func (g *gauge) begin() (u *unread, rst error) {
	kind, flags := g.head[1], binary.BigEndian.Uint16(g.head[2:])
	stream, length := binary.BigEndian.Uint32(g.head[4:]), binary.BigEndian.Uint32(g.head[8:])
	g.mu.Lock()
	defer g.mu.Unlock()
	if flags&muxSYN != 0 && stream != 0 && len(g.sessions) < maxSessions+backlog {
		g.sessionLocked(stream)
	}
	if kind == muxData {
		g.left, g.of = int64(length), g.sessions[stream]
	}
	if flags&muxRST == 0 || kind != muxData && kind != muxWindow {
		return nil, nil
	}
	rst = yamux.ErrStreamReset
	if kind == muxWindow {
		rst = &yamux.StreamError{Remote: true, ErrorCode: length}
	}
	return g.sessions[stream], rst
}

// tooMuchUnread says whether sessions hold more than they may.
func (m *memory) tooMuchUnread() bool { return m.unread.Load() > m.unreadMost() }

func (m *memory) unreadMost() int64 { return max(unreadLeast, m.budget*unreadShare) }

// shed resets the sessions that hold most until all together hold what they may.
func (e *Endpoint) shed() {
	for e.mem.tooMuchUnread() {
		var most *Conn
		var bytes int64
		for _, k := range e.links() {
			for _, c := range k.sessions() {
				if n := c.unread.bytes(); n > bytes {
					most, bytes = c, n
				}
			}
		}
		if most == nil {
			return // what is left belongs to streams that are not sessions yet
		}
		e.log.Warn("a session is reset for want of memory: its application does not read", "peer", most.lane.link.peer,
			"service", most.name, "id", most.id.String(), "unread", bytes)
		most.cut(fmt.Errorf("%d bytes were not read, and all such together are more than %d", bytes, e.mem.unreadMost()))
	}
}
