package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	yamux "github.com/libp2p/go-yamux/v5"
)

// wire speaks a lane's frames on a stream, as docs/session.md has them: what is written to it the peer's multiplexer
// reads. It never attaches anew.
type wire struct {
	*end
	in   *bufio.Reader
	left int    // bytes of the current DATA frame to come
	got  uint64 // bytes delivered
	deaf bool   // acknowledges nothing

	mu sync.Mutex // of writing
}

func newWire(s *end) *wire { return &wire{end: s, in: bufio.NewReaderSize(s, maxFrame)} }

func (w *wire) Read(p []byte) (int, error) {
	for w.left == 0 {
		head, err := w.in.Peek(1)
		for n := 2; err == nil; n++ {
			f, size, bad := parseFrame(head)
			if bad == nil {
				w.in.Discard(size)
				if err = w.control(f); err != nil {
					return 0, err
				}
				break
			}
			if bad != errShort {
				return 0, bad
			}
			head, err = w.in.Peek(n)
		}
		if err != nil {
			return 0, err
		}
	}
	n, err := w.in.Read(p[:min(len(p), w.left)])
	w.left -= n
	w.got += uint64(n)
	if n > 0 && !w.deaf {
		w.frame(frame{frameAck, w.got}, nil)
	}
	return n, err
}

func (w *wire) control(f frame) error {
	switch f.kind {
	case frameData:
		w.left = int(f.value)
	case framePing:
		return w.frame(frame{framePong, f.value}, nil)
	case frameEnd:
		w.Reset() // as the far side waits for
		return io.EOF
	}
	return nil
}

func (w *wire) frame(f frame, data []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.end.Write(append(appendFrame(nil, f), data...))
	return err
}

func (w *wire) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, maxData)
		if err := w.frame(frame{frameData, uint64(n)}, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// say sends a message, and data behind it.
func (w *wire) say(m message, data ...byte) error {
	var b [muxHeader]byte
	m.put(b[:])
	_, err := w.Write(append(b[:], data...))
	return err
}

// hear reads messages, without their data, until one is wanted.
func (w *wire) hear(wanted func(m message) bool) (message, error) {
	for {
		var b [muxHeader]byte
		if _, err := io.ReadFull(w, b[:]); err != nil {
			return message{}, err
		}
		m, err := parseMessage(&b)
		if err == nil && m.kind == muxData {
			_, err = io.CopyN(io.Discard, w, int64(m.length))
		}
		if err != nil || wanted(m) {
			return m, err
		}
	}
}

// drain reads on until the stream ends.
func (w *wire) drain() { w.hear(func(message) bool { return false }) }

func (w *wire) LocalAddr() net.Addr              { return addr("") }
func (w *wire) RemoteAddr() net.Addr             { return addr("") }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// entryWire attaches lane 0 of a new link to E, as an entry that is not ours.
func (l *lab) entryWire() *wire {
	l.t.Helper()
	a := l.pair()
	m := &attach{flags: flagNew, epoch: 1, link: linkID{7: 1}, boot: bootID{1}}
	if _, err := a.Write(m.append(nil)); err != nil {
		l.t.Fatal(err)
	}
	if r, err := readReply(a); err != nil || r.status != statusOK {
		l.t.Fatal(r, err)
	}
	return newWire(a)
}

// exitWires has C attach its lanes to an exit that is not ours.
func (l *lab) exitWires() <-chan *wire {
	ws := make(chan *wire, maxLanes)
	l.open = func(context.Context, int, Want) (*end, error) {
		a, b := streamPair(l.size)
		l.done.Go(func() {
			if _, err := readAttach(b); err != nil {
				return
			}
			b.Write((&reply{boot: bootID{2}}).append(nil))
			ws <- newWire(b)
		})
		return a, nil
	}
	return ws
}

// begin opens a stream with a whole OPEN.
func (w *wire) begin(stream uint32) error {
	o := (&open{service: "svc"}).append(nil)
	if err := w.say(message{muxWindow, muxSYN, stream, 0}); err != nil {
		return err
	}
	return w.say(message{muxData, 0, stream, uint32(len(o))}, o...)
}

// lane0 is the only lane of an endpoint.
func lane0(t testing.TB, e *Endpoint) *lane {
	t.Helper()
	ks := e.links()
	if len(ks) != 1 {
		t.Fatalf("%d links", len(ks))
	}
	return ks[0].lane(0)
}

// leftovers says what a lane still knows of.
func leftovers(l *lane) string {
	l.link.mu.Lock()
	conns, busy := len(l.link.conns), l.link.busy
	l.link.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := 0
	for _, line := range l.lines {
		lines += len(line)
	}
	if conns+busy+len(l.streams)+lines+l.opening+l.greeting == 0 {
		return ""
	}
	return fmt.Sprintf("%d sessions, %d busy, %d streams, %d in line, %d opening, %d greeting", conns, busy, len(l.streams), lines,
		l.opening, l.greeting)
}

// half is what a session of ours and a stream of the library's have in common.
type half interface {
	io.ReadWriter
	CloseWrite() error
	Reset() error
}

// pass moves n bytes and FIN from a to b.
func pass(a, b half, n int64) error {
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(onlyWriter{a}, &numbers{}, n)
		if err == nil {
			err = a.CloseWrite()
		}
		sent <- err
	}()
	w := &numbers{}
	_, err := io.Copy(w, onlyReader{b})
	if err == nil && w.at != n {
		err = fmt.Errorf("%d bytes of %d", w.at, n)
	}
	if err != nil {
		a.Reset()
		return errors.Join(err, <-sent)
	}
	return <-sent
}

// conversations plays all that two sides can do; meet gives both ends of an accepted session.
func conversations(t *testing.T, meet func() (ours *Conn, theirs *yamux.Stream)) {
	t.Helper()
	ours, theirs := meet() // both at once
	back := make(chan error, 1)
	go func() { back <- pass(theirs, ours, 5<<20) }()
	if err := errors.Join(pass(ours, theirs, 5<<20), <-back); err != nil {
		t.Error("both ways:", err)
	}
	ours.Close()
	theirs.Close()

	ours, theirs = meet() // one after the other's end
	if err := errors.Join(pass(ours, theirs, 1<<20), pass(theirs, ours, 3<<20)); err != nil {
		t.Error("ours half-closed:", err)
	}
	ours.Close()
	theirs.Close()
	ours, theirs = meet()
	if err := errors.Join(pass(theirs, ours, 3<<20), pass(ours, theirs, 1<<20)); err != nil {
		t.Error("theirs half-closed:", err)
	}
	ours.Close()
	theirs.Close()

	ours, theirs = meet()
	theirs.Reset()
	if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
		t.Error("reset by theirs:", err)
	}
	ours.Close()
	ours, theirs = meet()
	ours.Reset()
	if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, yamux.ErrStreamReset) {
		t.Error("reset by ours:", err)
	}

	ours, theirs = meet() // closed by ours, and theirs goes on
	ours.Close()
	var err error
	for range 100 {
		if _, err = theirs.Write(make([]byte, 1000)); err != nil {
			break
		}
		synctest.Wait()
	}
	if err == nil {
		t.Error("nobody reads, and the writer is not told")
	}
	theirs.Reset()

	var all sync.WaitGroup
	for range 200 {
		ours, theirs := meet()
		all.Go(func() {
			if err := errors.Join(pass(ours, theirs, 30_000), pass(theirs, ours, 300_000)); err != nil {
				t.Error("many:", err)
			}
			ours.Close()
			theirs.Close()
		})
	}
	all.Wait()
	synctest.Wait()
}

func libraryConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.LogOutput = io.Discard
	c.ConnectionWriteTimeout = time.Hour
	c.MaxIncomingStreams = maxSessions
	c.MaxStreamWindowSize = maxWindow
	return c
}

func TestTheLibraryAsEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		mux, err := yamux.Client(l.entryWire(), libraryConfig(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer mux.Close()
		dial := func() (*Incoming, *yamux.Stream) {
			st, err := mux.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			st.Write((&open{service: "svc"}).append(nil))
			in, err := l.e.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return in, st
		}
		conversations(t, func() (*Conn, *yamux.Stream) {
			in, st := dial()
			c, err := in.Accept()
			if err != nil {
				t.Fatal(err)
			}
			var yes [1]byte
			if _, err := io.ReadFull(st, yes[:]); err != nil || yes[0] != byte(OK) {
				t.Fatal(yes, err)
			}
			return c, st
		})
		in, st := dial()
		in.Refuse(Overload)
		var far *yamux.StreamError
		if _, err := st.Read(make([]byte, 1)); !errors.As(err, &far) || !far.Remote || far.ErrorCode != refusal+uint32(Overload) {
			t.Error("refused:", err)
		}
		if _, err := mux.Ping(); err != nil {
			t.Error("ping:", err)
		}
		synctest.Wait()
		if s := leftovers(lane0(t, l.e)); s != "" || mux.NumStreams() != 0 {
			t.Error("left:", s, mux.NumStreams())
		}
	})
}

func TestTheLibraryAsExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		wires, streams := l.exitWires(), make(chan *yamux.Stream)
		l.done.Go(func() {
			for {
				var w *wire
				select {
				case w = <-wires:
				case <-l.c.ctx.Done():
					return
				}
				mux, err := yamux.Server(w, libraryConfig(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				l.done.Go(func() {
					defer mux.Close()
					for {
						st, err := mux.AcceptStream()
						if err != nil {
							return
						}
						if _, err := readOpen(st); err != nil {
							t.Error(err)
						}
						streams <- st
					}
				})
			}
		})
		dial := func() (*Conn, *yamux.Stream) {
			c, err := l.c.Dial(t.Context(), peerE, "svc")
			if err != nil {
				t.Fatal(err)
			}
			return c, <-streams
		}
		conversations(t, func() (*Conn, *yamux.Stream) {
			c, st := dial()
			if _, err := st.Write([]byte{byte(OK)}); err != nil {
				t.Fatal(err)
			}
			return c, st
		})
		c, st := dial()
		st.ResetWithError(refusal + uint32(Refused))
		var no *RefusedError
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &no) || no.Code != Refused {
			t.Error("refused:", err)
		}
		c.Close()
		synctest.Wait()
		if s := leftovers(lane0(t, l.c)); s != "" {
			t.Error("left:", s)
		}
	})
}

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
				w.begin(1)
				in, err := l.e.Accept(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				c, err := in.Accept()
				if err != nil {
					t.Fatal(err)
				}
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
		w.begin(1)
		in, err := l.e.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := in.Accept()
		if err != nil {
			t.Fatal(err)
		}
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

// race has sessions write pieces of a size each, for a while, on a line of 16 KiB a millisecond, and says how much each has
// written in two seconds.
func race(t *testing.T, sizes ...int) (moved []int64) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		l.open = func(context.Context, int, Want) (*end, error) {
			a, b := streamPair(16 << 10)
			c := l.pair()
			l.done.Go(func() { io.Copy(b, onlyReader{c}) })
			l.done.Go(func() {
				for buf := make([]byte, 16<<10); ; {
					n, err := b.Read(buf)
					if err != nil {
						c.Reset()
						return
					}
					time.Sleep(time.Duration(n) * time.Millisecond / time.Duration(len(buf)))
					c.Write(buf[:n])
				}
			})
			return a, nil
		}
		var near []*Conn
		for range sizes {
			c, e := l.session()
			near = append(near, c)
			go io.Copy(io.Discard, e)
		}
		for i, c := range near {
			go func() {
				for buf := make([]byte, sizes[i]); ; {
					if _, err := c.Write(buf); err != nil {
						return
					}
				}
			}()
		}
		time.Sleep(time.Second) // who came first had the lane for himself
		for _, c := range near {
			moved = append(moved, -c.sent.Load())
		}
		time.Sleep(2 * time.Second)
		for i, c := range near {
			if c.lane != near[0].lane {
				t.Error("not on one lane")
			}
			moved[i] += c.sent.Load()
			defer c.Reset()
		}
	})
	return moved
}

func TestBulkWritersShareALaneEvenly(t *testing.T) {
	moved := race(t, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20, 1<<20)
	least, most := moved[0], moved[0]
	for _, n := range moved {
		least, most = min(least, n), max(most, n)
	}
	if most-least > 2*muxPayload || least < 1<<20 {
		t.Errorf("written: %d", moved)
	}
}

// Small pieces go ahead, but who writes nothing else does not keep the lane for himself.
func TestSmallPiecesWithoutEndStarveNobody(t *testing.T) {
	moved := race(t, smallPiece, smallPiece, 1<<20)
	if small, large := moved[0], moved[2]; large < small/20 || small < large/20 {
		t.Errorf("written: %d", moved)
	}
}

// A shell that has waited for credit with a large piece does not stand in the way of those with small ones.
func TestWhoWantsMoreThanBeforeLeavesTheShortLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		grown, _ := l.session()
		shell, _ := l.session()
		bulk, _ := l.session()
		ln := grown.lane
		synctest.Wait() // the credit that comes with the exit's answer is there
		ln.mu.Lock()
		grown.credit = 100 // so far
		ln.mu.Unlock()
		bulk.lane.mu.Lock()
		bulk.credit = 1 << 30
		bulk.lane.mu.Unlock()
		p := l.last().out
		p.hold(true)
		go io.Copy(onlyWriter{bulk}, &numbers{})
		synctest.Wait()
		go fillSmall(shell)
		synctest.Wait()                       // nothing fits any more, not even small pieces
		go grown.Write(make([]byte, 100<<10)) // what its credit allows is small
		synctest.Wait()
		ln.mu.Lock()
		grown.credit = 1 << 20
		grown.canWrite.Broadcast()
		ln.mu.Unlock()
		synctest.Wait()
		ln.mu.Lock()
		for size, line := range ln.lines {
			for _, c := range line {
				if c.parked[size] == 0 {
					t.Errorf("stands in line %d and waits elsewhere", size)
				}
			}
		}
		ln.mu.Unlock()
		p.hold(false)
		for _, c := range []*Conn{grown, shell, bulk} {
			c.Reset()
		}
	})
}

func fillSmall(c *Conn) {
	for {
		if _, err := c.Write(make([]byte, 1000)); err != nil {
			return
		}
	}
}

// An entry has no more sessions unanswered than an exit must take; who dials beyond waits.
func TestDialsBeyondTheBacklogWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		wires := l.exitWires()
		var conns []*Conn
		for range backlog {
			c, err := l.c.Dial(t.Context(), peerE, "svc")
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		w := <-wires
		go w.drain()
		dial := func(ctx context.Context) chan error {
			done := make(chan error, 1)
			go func() {
				_, err := l.c.Dial(ctx, peerE, "svc")
				done <- err
			}()
			synctest.Wait()
			select {
			case err := <-done:
				t.Fatal("a dial did not wait:", err)
			default:
			}
			return done
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := dial(ctx)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error("called off:", err)
		}
		done = dial(t.Context())
		w.say(message{muxWindow, muxACK, 1, 0})
		if err := <-done; err != nil {
			t.Error("after an answer:", err)
		}
		done = dial(t.Context())
		w.say(message{muxWindow, muxRST, 3, 0})
		if err := <-done; err != nil {
			t.Error("after a reset by them:", err)
		}
		done = dial(t.Context())
		conns[2].Reset()
		if err := <-done; err != nil {
			t.Error("after a reset by us:", err)
		}
		done = dial(t.Context())
		old := lane0(t, l.c)
		old.link.fail(errCut, endCut)
		if err := <-done; err != nil || lane0(t, l.c) == old {
			t.Error("after the link's end, on a new one:", err)
		}
		synctest.Wait()
		if s := leftovers(old); s != "" {
			t.Error("left:", s)
		}
	})
}

// A burst of dials of our own is never more than our exit takes, though Accept is late.
func TestABurstOfDialsWaitsForAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		const n = backlog + 1000
		var all sync.WaitGroup
		var failed atomic.Int32
		for range n {
			all.Go(func() {
				c, err := l.c.Dial(t.Context(), peerE, "svc")
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := c.Read(make([]byte, 1)); err != io.EOF {
					failed.Add(1)
				}
				c.Close()
			})
		}
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		go func() { all.Wait(); cancel() }()
		for {
			in, err := l.e.Accept(ctx)
			if err != nil {
				break
			}
			if c, err := in.Accept(); err == nil {
				c.Close()
			}
		}
		all.Wait()
		if failed := failed.Load(); failed > 0 {
			t.Errorf("%d of %d sessions failed", failed, n)
		}
	})
}

// A dial that waits for room ends with the link, also where the path is away.
func TestADialThatWaitsForRoomEndsWithTheLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, _ := l.session()
		synctest.Wait()   // until it has its credit
		silence(l.last()) // nobody has noticed yet
		fill([]*Conn{c})
		done := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 2 {
			go func() { _, err := l.c.Dial(ctx, peerE, "svc"); done <- err }()
		}
		synctest.Wait()
		if n := len(c.lane.lines[first]); n != 2 {
			t.Fatalf("%d dials wait for room, want 2", n)
		}
		l.lose(peerE)
		l.last().Reset()
		synctest.Wait()
		k := c.lane.link
		k.fail(errCut, endCut)
		synctest.Wait()
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.busy != 0 { // the dials begin a new link, for which there is no path
			t.Errorf("%d dials wait at a link that has ended", k.busy)
		}
	})
}

// Stream numbers begin again, and those in use are left out.
func TestStreamNumbersBeginAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		long, far := l.session() // 1
		second, _ := l.session() // 3
		second.Reset()
		long.lane.mu.Lock()
		long.lane.nextStream = 1<<32 - 3
		long.lane.mu.Unlock()
		for _, want := range []uint32{1<<32 - 3, 1<<32 - 1, 3, 5} {
			c, e := l.session()
			if c.stream != want || e.stream != want {
				t.Errorf("stream %d, %d at the exit, want %d", c.stream, e.stream, want)
			}
			if err := both(c, e, 1000, 1000); err != nil {
				t.Error(err)
			}
		}
		if err := both(long, far, 1000, 1000); err != nil {
			t.Error(err)
		}
	})
}

// A deadline holds for a call under way: set before it, during it, moved, and taken back.
func TestDeadlinesOfCallsUnderWay(t *testing.T) {
	never := time.Duration(0)
	for name, k := range map[string]struct{ before, during, want time.Duration }{
		"before":     {time.Second, -1, time.Second},
		"during":     {never, 2 * time.Second, 2 * time.Second},
		"sooner":     {time.Minute, 2 * time.Second, 2 * time.Second},
		"later":      {2 * time.Second, time.Minute, time.Minute},
		"taken back": {2 * time.Second, never, never},
		"passed":     {never, time.Nanosecond, time.Second}, // set after a second
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				c, e := l.session()
				start := time.Now()
				at := func(d time.Duration) time.Time {
					if d == never {
						return time.Time{}
					}
					return start.Add(d)
				}
				c.SetDeadline(at(k.before))
				ended := make(chan error, 4)
				for range 2 {
					go func() { _, err := c.Read(make([]byte, 1)); ended <- err }()
				}
				for range 2 {
					go func() { _, err := io.Copy(onlyWriter{c}, &numbers{}); ended <- err }() // e reads nothing
				}
				time.Sleep(time.Second - time.Nanosecond)
				if k.during >= 0 {
					c.SetDeadline(at(k.during))
				}
				synctest.Wait()
				if k.want == never {
					time.Sleep(time.Hour)
					if len(ended) != 0 {
						t.Error("ended:", <-ended)
					}
					c.Reset()
					e.Reset()
					return
				}
				for range 4 {
					if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
				}
				if took := time.Since(start); took > k.want || took < k.want-time.Second {
					t.Errorf("after %v, want %v", took, k.want)
				}
				c.SetDeadline(time.Time{}) // and it goes on
				go func() { io.Copy(io.Discard, e) }()
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					t.Error("afterwards:", err)
				}
				e.Write([]byte{1})
				if _, err := c.Read(make([]byte, 1)); err != nil {
					t.Error("afterwards:", err)
				}
			})
		})
	}
}

// Two writers of one session have the same deadline, also when one of them has done before.
func TestADeadlineHoldsForEachWriter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, _ := l.session()
		bulk, _ := l.session()
		shell, _ := l.session()
		p := l.last().out
		p.hold(true)
		go io.Copy(onlyWriter{bulk}, &numbers{})
		synctest.Wait()
		fill([]*Conn{shell})
		c.SetWriteDeadline(time.Now().Add(time.Second))
		large, little := make(chan error, 1), make(chan error, 1)
		go func() { _, err := c.Write(make([]byte, 1000)); little <- err }()
		synctest.Wait()
		go func() { _, err := c.Write(make([]byte, 100<<10)); large <- err }()
		synctest.Wait()
		if len(large)+len(little) != 0 {
			t.Fatal("somebody did not wait")
		}
		for len(little) == 0 { // room for small pieces only, a few at a time
			c.lane.mu.Lock()
			c.lane.ahead = 0 // as after a large one
			c.lane.mu.Unlock()
			p.mu.Lock()
			p.size += 8 << 10
			p.cond.Broadcast()
			p.mu.Unlock()
			synctest.Wait()
		}
		if err := <-little; err != nil {
			t.Error("the small piece:", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		select {
		case err := <-large:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the large piece:", err)
			}
		default:
			t.Error("the large piece waits beyond its deadline")
		}
		for _, c := range []*Conn{c, bulk, shell} {
			c.Reset()
		}
		p.hold(false)
	})
}

// A write under way ends at its deadline and with its session, also where it is the stream that holds it up.
func TestAWriteThatTheStreamHoldsUpCanBeEnded(t *testing.T) {
	for name, end := range map[string]func(c *Conn){
		"deadline": func(c *Conn) { c.SetWriteDeadline(time.Now()) },
		"reset":    func(c *Conn) { c.Reset() },
		"close":    func(c *Conn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				defer l.close()
				l.size = 1 << 10
				c, e := l.session()
				defer e.Reset()
				synctest.Wait()
				l.last().out.hold(true)
				done := make(chan error, 1)
				go func() {
					var err error
					for err == nil {
						_, err = c.Write(make([]byte, 4<<10))
					}
					done <- err
				}()
				synctest.Wait()
				end(c)
				synctest.Wait() // no time passes
				if len(done) == 0 {
					t.Error("waits still")
				}
				l.last().out.hold(false)
				<-done
			})
		})
	}
}

// The ends of a session, in every order and at once: what came in order before FIN is read, a failure is never io.EOF,
// and nothing is left.
func TestEndsInEveryOrder(t *testing.T) {
	acts := map[string]func(c *Conn){
		"fin":   func(c *Conn) { c.CloseWrite() },
		"close": func(c *Conn) { c.Close() },
		"reset": func(c *Conn) { c.Reset() },
		"cut":   func(c *Conn) { c.cut(errCut) },
	}
	const size = 100_000
	for a, actA := range acts {
		for b, actB := range acts {
			for _, how := range []string{"first", "second", "at once"} {
				name := fmt.Sprintf("entry %s exit %s %s", a, b, how)
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newLab(t)
						defer l.close()
						c, e := l.session()
						ln, le := c.lane, e.lane
						for _, s := range []*Conn{c, e} {
							go io.CopyN(onlyWriter{s}, &numbers{}, size)
						}
						synctest.Wait() // each may read size bytes and then waits
						var all sync.WaitGroup
						type result struct {
							n   int64
							err error
						}
						var got [2]result
						read := func(i int, s *Conn) {
							w := &numbers{}
							_, err := io.Copy(w, onlyReader{s})
							got[i] = result{w.at, err}
						}
						all.Go(func() { read(0, c) })
						all.Go(func() { read(1, e) })
						if how != "at once" {
							synctest.Wait()
						}
						switch how {
						case "first":
							actA(c)
							synctest.Wait()
							actB(e)
						case "second":
							actB(e)
							synctest.Wait()
							actA(c)
						default:
							all.Go(func() { actA(c) })
							all.Go(func() { actB(e) })
						}
						all.Wait()
						for i, far := range []string{b, a} {
							near := []string{a, b}[i]
							g := got[i]
							switch {
							case g.err == nil && far != "fin" && far != "close":
								t.Errorf("the far side's %s seems an end", far)
							case g.err == nil && g.n != size:
								t.Errorf("the end after %d bytes", g.n)
							case near == "fin" && far == "fin" && g.err != nil:
								t.Error(g.err)
							case g.err != nil && !errors.Is(g.err, ErrReset) && !errors.Is(g.err, net.ErrClosed):
								t.Error(g.err)
							case near == "fin" && far != "fin" && far != "close" && !errors.Is(g.err, ErrReset):
								t.Error("want a reset:", g.err)
							}
						}
						c.Close()
						e.Close()
						synctest.Wait()
						if s := leftovers(ln) + leftovers(le); s != "" {
							t.Error("left:", s)
						}
						if n := l.c.mem.unread.Load() + l.e.mem.unread.Load(); n != 0 {
							t.Error("unread:", n)
						}
						time.Sleep(2 * idleLink)
						if n := len(l.c.Lanes()); n != 0 {
							t.Error("the link is not idle")
						}
					})
				})
			}
		}
	}
}

// A refusal that comes at once leaves nothing of the session behind when its user has closed it.
func TestSessionsThatAreRefusedAtOnceAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		var all sync.WaitGroup
		all.Go(func() {
			for range 500 {
				in, err := l.e.Accept(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				in.Refuse(Denied)
			}
		})
		for range 500 {
			all.Go(func() {
				c, err := l.c.Dial(t.Context(), peerE, "svc")
				if err != nil {
					t.Error(err)
					return
				}
				var no *RefusedError
				if _, err := c.Read(make([]byte, 1)); !errors.As(err, &no) {
					t.Error(err)
				}
				if rand.IntN(2) == 0 {
					c.Reset()
				}
				c.Close()
			})
		}
		all.Wait()
		synctest.Wait()
		if s := leftovers(lane0(t, l.c)) + leftovers(lane0(t, l.e)); s != "" {
			t.Error("left:", s)
		}
	})
}

// Whatever a peer says after its FIN, a reader that has been told of the end reads nothing more.
func TestNothingComesAfterAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		w := l.entryWire()
		go w.drain()
		w.begin(1)
		in, err := l.e.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c, err := in.Accept()
		if err != nil {
			t.Fatal(err)
		}
		w.say(message{muxData, muxFIN, 1, 1}, 'x')
		if b, err := io.ReadAll(c); string(b) != "x" || err != nil {
			t.Fatalf("%q, %v", b, err)
		}
		w.say(message{muxData, 0, 1, 1}, 'y')
		synctest.Wait()
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes after the end, and %v", n, err)
		}
	})
}

// A peer that calls off what it has just opened, with whatever code, harms nobody; of interest with -race.
func TestAnOpenThatIsCalledOffAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		w := l.entryWire()
		go w.drain()
		ctx, cancel := context.WithCancel(t.Context())
		var accepting sync.WaitGroup
		accepting.Go(func() {
			for {
				in, err := l.e.Accept(ctx)
				if err != nil {
					return
				}
				if c, err := in.Accept(); err == nil {
					c.Close()
				}
			}
		})
		for i := range uint32(300) {
			w.begin(2*i + 1)
			w.say(message{muxWindow, muxRST, 2*i + 1, refusal + uint32(Denied)})
		}
		synctest.Wait()
		if s := leftovers(lane0(t, l.e)); s != "" {
			t.Error("left:", s)
		}
		cancel()
		accepting.Wait()
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
