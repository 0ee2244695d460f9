package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A peer that does not keep to the multiplexer's protocol loses its link; its sessions are reset, not ended.
func TestABreachOfTheMultiplexerEndsTheLink(t *testing.T) {
	for name, breach := range map[string]func(w *wire){
		"beyond its credit":       func(w *wire) { w.say(message{muxData, 0, 1, firstWindow + 1}) },
		"a stream begins twice":   func(w *wire) { w.begin(1) },
		"unknown type":            func(w *wire) { w.say(message{kind: 4}) },
		"unknown version":         func(w *wire) { w.Write([]byte{1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}) },
		"go away":                 func(w *wire) { w.say(message{kind: muxGoAway}) },
		"beyond, a bit at a time": func(w *wire) { w.Write(manyMessages(1, 1000, firstWindow/1000+1)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				w := l.entryWire()
				go w.drain()
				var conns []*Conn
				for i := range 2 {
					w.begin(uint32(1 + 2*i))
					in, err := l.e.Accept(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					c, err := in.Accept()
					if err != nil {
						t.Fatal(err)
					}
					conns = append(conns, c)
				}
				breach(w)
				for i, c := range conns {
					var err error
					for buf := make([]byte, 1000); err == nil; {
						if i == 0 {
							synctest.Wait() // its bytes are not taken before all of them have come
						}
						_, err = c.Read(buf)
					}
					if !errors.Is(err, ErrReset) {
						t.Error(err)
					}
				}
			})
		})
	}
}

// manyMessages is n messages of that size.
func manyMessages(stream uint32, size, n int) (b []byte) {
	for range n {
		var head [muxHeader]byte
		message{muxData, 0, stream, uint32(size)}.put(head[:])
		b = append(append(b, head[:]...), make([]byte, size)...)
	}
	return b
}

// Streams that are too many are reset, and those alone.
func TestStreamsBeyondTheLimitsAreResetAlone(t *testing.T) {
	for name, full := range map[string]func(l *lane, w *wire){
		"backlog": func(l *lane, w *wire) {
			for i := range backlog - 1 { // none of which says what it wants
				w.say(message{muxWindow, muxSYN, uint32(1001 + 2*i), 0})
			}
		},
		"sessions": func(l *lane, w *wire) {
			l.mu.Lock()
			defer l.mu.Unlock()
			for i := range maxSessions - 2 {
				c := newConn(l)
				c.stream = uint32(1001 + 2*i)
				l.streams[c.stream] = c
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				w := l.entryWire()
				reset := make(chan uint32, 100)
				go w.hear(func(m message) bool {
					if m.flags&muxRST != 0 {
						reset <- m.stream
					}
					return false
				})
				c := l.accepted(w)
				synctest.Wait()
				full(c.lane, w)
				w.say(message{muxWindow, muxSYN, 3, 0}) // the last that fits
				w.say(message{muxWindow, muxSYN, 5, 0})
				w.say(message{muxWindow, muxSYN, 7, 0})
				w.say(message{muxWindow, muxSYN, 8, 0}) // not an entry's
				w.say(message{muxData, 0, 1, 1}, 'x')
				if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
					t.Error("the session:", err)
				}
				synctest.Wait()
				close(reset)
				var got []uint32
				for s := range reset {
					got = append(got, s)
				}
				if fmt.Sprint(got) != "[5 7 8]" {
					t.Error("reset:", got)
				}
				w.Reset()
				l.e.Cut(func(_ peer.ID, service, _ string) bool { return service == "" }, errCut)
			})
		})
	}
}

// Who makes us answer and acknowledges nothing is not remembered for ever.
func TestAPeerThatPingsAndAcknowledgesNothingIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		w := l.entryWire()
		w.deaf = true
		go w.drain()
		c := l.accepted(w)
		w.say(message{muxWindow, 0, 1, 1 << 30})
		ended := make(chan error, 1)
		go func() { _, err := io.Copy(onlyWriter{c}, &numbers{}); ended <- err }()
		pings := make([]byte, 0, 60<<10)
		for range cap(pings) / muxHeader {
			var b [muxHeader]byte
			message{muxPing, muxSYN, 0, 7}.put(b[:])
			pings = append(pings, b[:]...)
		}
		most := int64(0)
		for n := 0; n < 4*mostControl; n += len(pings) {
			if _, err := w.Write(pings); err != nil {
				break
			}
			if i := l.e.Lanes(); len(i) > 0 {
				most = max(most, i[0].Unacked)
			}
		}
		if err := <-ended; !errors.Is(err, ErrReset) {
			t.Error(err)
		}
		if most > maxRing+2*mostControl {
			t.Errorf("%d bytes were kept", most)
		}
	})
}

// FuzzMessages plays bytes as what a peer's multiplexer says: the first says to which end, the rest are short forms of
// messages that mean something, or the messages themselves.
func FuzzMessages(f *testing.F) {
	for _, seed := range [][]byte{
		{0, muxWindow, muxSYN, 1, 0, muxData, 0, 1, 20, muxData, muxFIN, 1, 9, muxWindow, muxRST, 1, 2},
		{1, muxWindow, muxACK, 1, 0, muxData, 0, 1, 200, muxData, 0, 3, 1, muxData, muxFIN, 3, 0, muxWindow, muxRST, 5, 1},
		{0, muxPing, muxSYN, 0, 1, muxPing, muxACK, 0, 1, muxGoAway, 0, 0, 0},
		{0, muxWindow, muxSYN, 1, 0, muxWindow, muxSYN, 2, 0, muxWindow, muxSYN, 1, 0},
		{0, muxData, muxSYN | muxFIN, 1, 13, muxData, muxSYN, 3, 255, muxData, 0, 3, 255, muxWindow, muxFIN, 3, 255},
		{1, muxData, muxFIN, 1, 0, muxWindow, muxFIN, 3, 0, muxData, muxRST, 5, 40, 7, 7, 7, 7},
		append([]byte{2, 0, muxWindow, 0, muxSYN, 0, 0, 0, 1, 0, 0, 0, 0}, manyMessages(1, 30, 3)...),
		append([]byte{3}, manyMessages(1, 30, 3)...),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 0 && len(data) < 4<<10 {
			synctest.Test(t, func(t *testing.T) { playMessages(t, data) })
		}
	})
}

func playMessages(t *testing.T, data []byte) {
	e := New(Config{Self: peerE, Now: time.Now, Open: func(context.Context, peer.ID, Want) (Stream, error) { return nil, errCut }})
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { e.Serve(ctx) })
	mode := data[0]
	data = data[1:]
	k := newLink(e, peerC, role(1-mode%2), linkID{})
	l := k.lane(0)
	var mu sync.Mutex
	var all []*Conn
	use := func(c *Conn, how int) {
		mu.Lock()
		all = append(all, c)
		mu.Unlock()
		switch how % 5 {
		case 0:
			io.Copy(io.Discard, onlyReader{c})
		case 1:
			io.Copy(c, onlyReader{c})
		case 2:
			c.CloseWrite()
			c.Read(make([]byte, 10))
		case 3:
			return // reads nothing
		}
		c.Close()
	}
	if k.role == entry {
		for i := range 5 {
			c := newConn(l)
			o := &open{service: "svc"}
			c.begin(o)
			if err := l.enlist(ctx, c, o.append(nil)); err != nil || !k.add(c) {
				t.Fatal(err)
			}
			done.Go(func() { use(c, i) })
		}
	}
	done.Go(func() {
		for n := 0; ; n++ {
			in, err := e.Accept(ctx)
			if err != nil {
				return
			}
			if n%4 == 3 {
				in.Refuse(Refused)
			} else if c, err := in.Accept(); err == nil {
				done.Go(func() { use(c, n) })
			}
		}
	})

	said := data
	if mode&2 == 0 {
		said = nil
		for ; len(data) >= 4 && len(said) < 4<<20; data = data[4:] {
			m := message{data[0] % 5, uint16(data[1]), uint32(data[2] % 16), uint32(data[3])}
			if data[1]&0x80 != 0 {
				m.length <<= 12
			}
			var b [muxHeader]byte
			m.put(b[:])
			said = append(said, b[:]...)
			if m.kind == muxData {
				body := make([]byte, m.length)
				if m.flags&muxSYN != 0 {
					copy(body, (&open{service: "svc"}).append(nil))
				}
				said = append(said, body...)
			}
		}
	}
	var d demux
	for i := 0; len(said) > 0; i++ {
		n := copy(d.place(), said[:min(len(said), 1+i*i%7_000)])
		said = said[n:]
		if l.took(&d, n) != nil {
			break
		}
		if i < 100 && i%3 == 0 {
			synctest.Wait()
		}
	}
	synctest.Wait()
	l.mu.Lock()
	if n := len(l.streams); n > maxSessions || k.role == entry && n > 5 {
		t.Errorf("%d streams", n)
	}
	l.mu.Unlock()
	k.fail(errCut, endCut)
	cancel()
	done.Wait()
	for _, c := range all {
		c.Close()
	}
	synctest.Wait()
	if n := e.mem.unread.Load(); n != 0 {
		t.Errorf("%d bytes seem to be unread", n)
	}
	if e.mem.windows != 0 || e.mem.used != 0 {
		t.Errorf("%d bytes of windows and %d of rings are taken", e.mem.windows, e.mem.used)
	}
	if s := leftovers(l); s != "" {
		t.Error("left:", s)
	}
}
