package session

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

func (w *wire) LocalAddr() net.Addr { return addr("") }

func (w *wire) RemoteAddr() net.Addr { return addr("") }

func (w *wire) SetReadDeadline(time.Time) error { return nil }

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

// accepted begins w's first session and has the exit accept it.
func (l *lab) accepted(w *wire) *Conn {
	l.t.Helper()
	w.begin(1)
	in, err := l.e.Accept(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := in.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
	return c
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
