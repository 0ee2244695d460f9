package session

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// ask sends one attach to E as p and gives its status.
func (l *lab) ask(p peer.ID, m *attach) status {
	l.t.Helper()
	a, b := streamPair(1 << 10)
	l.done.Go(func() { l.e.Handle(p, b) })
	if _, err := a.Write(m.append(nil)); err != nil {
		l.t.Fatal(err)
	}
	r, err := readReply(a)
	if err != nil {
		l.t.Fatal(err)
	}
	a.Reset()
	return r.status
}

// TestAttachMustBeRight: whatever is wrong with an attach, it is refused with its reason; and as long as it is the
// attach of somebody else or of the past, the live attachment is untouched.
func TestAttachMustBeRight(t *testing.T) {
	cases := []struct {
		name   string
		from   peer.ID
		change func(m *attach)
		want   status
		ends   bool // the link
	}{
		{"foreign peer with the right link", "stranger", func(m *attach) {}, statusUnknownLink, false},
		{"old epoch", peerC, func(m *attach) { m.epoch = 1 }, statusStaleEpoch, false},
		{"unknown link", peerC, func(m *attach) { m.link[9]++ }, statusUnknownLink, false},
		{"serial of the past", peerC, func(m *attach) { m.link[9]++; m.flags = flagNew; m.offset, m.crc = 0, 0 }, statusUnknownLink, false},
		{"unknown lane", peerC, func(m *attach) { m.lane = 2 }, statusUnknownLink, false},
		{"other boot of ours", peerC, func(m *attach) { m.known[0]++ }, statusBootChanged, false},
		{"other boot of theirs", peerC, func(m *attach) { m.boot[0]++ }, statusUnknownLink, false},
		{"check", peerC, func(m *attach) { m.flags = flagCheck; m.offset = 1 << 50 }, statusOK, false},
		{"wrong crc", peerC, func(m *attach) { m.crc++ }, statusDesync, true},
		{"beyond what was sent", peerC, func(m *attach) { m.offset += 1 << 40 }, statusDesync, true},
		{"before what was acknowledged", peerC, func(m *attach) { m.offset = 1 }, statusStaleEpoch, false},
	}
	for _, k := range cases {
		t.Run(k.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				c, e := l.session()
				e.Write(make([]byte, 1000))
				io.ReadFull(c, make([]byte, 1000))
				time.Sleep(time.Second)
				ln := c.lane
				m := &attach{link: ln.link.id, boot: l.c.boot, epoch: 1000, offset: ln.rxOff, crc: ln.rxCRC}
				copy(m.known[:], l.e.boot[:])
				k.change(m)
				if st := l.ask(k.from, m); st != k.want {
					t.Fatalf("%v, want %v", st, k.want)
				}
				if k.ends {
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
						t.Fatal(err)
					}
					return
				}
				if err := both(c, e, 100<<10, 100<<10); err != nil {
					t.Fatal(err)
				}
				if i := l.c.Lanes()[0]; i.Migrations != 0 || l.opened() != 1 {
					t.Fatal("the live attachment was touched:", i)
				}
			})
		})
	}
}

func TestDeniedAttachTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		l.mu.Lock()
		l.deny = errors.New("revoked")
		l.mu.Unlock()
		m := &attach{link: c.lane.link.id, boot: l.c.boot, epoch: 1000}
		if st := l.ask(peerC, m); st != statusDenied {
			t.Fatal(st)
		}
		if err := both(c, e, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	})
}

func TestGarbageCostsTheStreamOnly(t *testing.T) {
	for _, junk := range [][]byte{{9}, {frameData, 0}, {frameAck, 0xff, 0xff, 0xff, 0x7f}, {frameData, 0x81, 0}} {
		synctest.Test(t, func(t *testing.T) {
			l := newLab(t)
			defer l.close()
			c, e := l.session()
			time.Sleep(time.Second)
			l.last().Write(junk)
			if err := both(c, e, 1000, 1000); err != nil {
				t.Fatal(err)
			}
			if l.opened() != 2 {
				t.Fatal("streams:", l.opened())
			}
		})
	}
}

func TestGarbageAllTheTimeEndsTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, _ := l.session()
		for range violations {
			time.Sleep(time.Second)
			l.last().Write([]byte{9})
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
	})
}

func TestHalfAnAttachIsNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		a, b := streamPair(1 << 10)
		a.Write([]byte("FWL1"))
		start := time.Now()
		l.e.Handle(peerC, b)
		if took := time.Since(start); took != attachPatience {
			t.Fatal(took)
		}
		a, b = streamPair(1 << 10)
		a.Write([]byte("HTTP"))
		l.e.Handle(peerC, b)
		if r, err := readReply(a); err != nil || r.status != statusVersion {
			t.Fatal(r, err)
		}
	})
}

// TestLostAnswer: E has switched, C does not know.
func TestLostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		var lost atomic.Int64
		l.open = func(context.Context, int, Want) (*end, error) {
			s := l.pair()
			if n := lost.Add(1); n < 20 {
				s.in.limit = replySize + n*2 // the check passes, the answer does not
			}
			return s, nil
		}
		done := make(chan error)
		go func() { done <- both(c, e, 4<<20, 4<<20) }()
		for range 30 {
			l.c.Renew(peerE)
			time.Sleep(5 * time.Millisecond)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestMemoryShortageDropsTheDetachedLinkAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, func(c, e *Config) { c.Budget = 1 << 20 })
		defer l.close()
		l.size = 64 << 20
		// A link to another peer whose path goes for good, with bytes unsent.
		other := newLab(t)
		defer other.close()
		l.open = func(context.Context, int, Want) (*end, error) { return other.pair(), nil }
		gone, err := l.c.Dial(t.Context(), "other peer", "svc")
		if err != nil {
			t.Fatal(err)
		}
		l.mu.Lock()
		l.lost, l.open = "other peer", nil
		l.mu.Unlock()
		l.last().Reset()
		go gone.Write(make([]byte, 255<<10))
		time.Sleep(2 * time.Minute)
		var conns, ends []*Conn
		for range 6 {
			c, e := l.session()
			conns, ends = append(conns, c), append(ends, e)
		}
		s := conns[0].lane.cur.s.(*end)
		s.in.hold(true) // no ACK comes back
		for _, c := range conns {
			go c.Write(make([]byte, 255<<10))
		}
		time.Sleep(500 * time.Millisecond)
		if _, err := gone.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
		s.in.hold(false)
		for _, e := range ends {
			if _, err := io.ReadFull(e, make([]byte, 255<<10)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestShellIsNotStuckBehindATransferOnItsLane: what is queued in front of a lane is bounded.
func TestShellIsNotStuckBehindATransferOnItsLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		shell, far := l.session()
		var bulk []*Conn
		for range 8 {
			c, e := l.session()
			bulk = append(bulk, c)
			go io.Copy(io.Discard, e)
		}
		time.Sleep(time.Second)
		s := l.last()
		s.out.hold(true)
		for _, c := range bulk {
			go c.Write(make([]byte, 255<<10))
		}
		time.Sleep(500 * time.Millisecond)
		var before int64
		for _, c := range bulk {
			before += c.Info().Sent
		}
		const bound = 64<<10 + maxUnsent + 2*muxPayload
		if before > bound {
			t.Fatalf("%d bytes in front of the shell, more than %d", before, bound)
		}
		if _, err := shell.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		s.out.hold(false)
		if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	})
}

// afar is C's end of a stream of which E learns everything late. It breaks at C, and there alone at first, behind the
// second write: the attach that follows a check.
type afar struct {
	*end
	late   time.Duration
	writes atomic.Int32
}

func (s *afar) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	time.AfterFunc(s.late, func() { s.end.Write(b) })
	if s.writes.Add(1) == 2 {
		s.in.fail(errCut, true, false)
	}
	return len(b), nil
}

func (s *afar) Reset() error {
	s.in.fail(errCut, true, false)
	time.AfterFunc(s.late+time.Millisecond, func() { s.end.Reset() })
	return nil
}

func (s *afar) SetDeadline(time.Time) error { return nil }

// TestAttachThatCGaveUpHarmsNothing: E reads it when C has long gone on with the old stream.
func TestAttachThatCGaveUpHarmsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l *lab
		var better atomic.Int32
		l = newLab(t, func(c, _ *Config) {
			c.Open = func(_ context.Context, _ peer.ID, want Want) (Stream, error) {
				if want.Now == nil {
					return l.pair(), nil
				}
				if better.Add(1) == 1 {
					return &afar{end: l.pair(), late: 300 * time.Millisecond}, nil
				}
				return nil, ErrStay
			}
		})
		defer l.close()
		c, e := l.session()
		done := make(chan error, 1)
		go func() { done <- receive(c, 1000*300) }()
		l.c.Renew(peerE)
		n := &numbers{}
		for range 300 { // three seconds of them, acknowledged all the while
			if _, err := io.CopyN(onlyWriter{e}, n, 1000); err != nil {
				t.Fatal("the link has ended:", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		e.CloseWrite()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if better.Load() < 2 {
			t.Error("the renewal was not tried again")
		}
	})
}
